"""The options of `quietstar inspect`."""

from dataclasses import dataclass, fields
from typing import Any

from quietstar.errors import SettingsError
from quietstar.inference.loading import MODEL, THOUGHTS
from quietstar.inference.speak import TEXT, SpeakArguments
from quietstar.inspection.interventions import CHOICES
from quietstar.inspection.settings import TraceSettings
from quietstar.inspection.trace import FORMATS
from quietstar.runs.fields import check_at_least, option
from quietstar.text.unicode import check_text

WHAT_IF = "are they used?"
RUN = "run"
NONE = "none"


@dataclass(kw_only=True)
class InspectArguments(SpeakArguments):
    """What to inspect, and which interventions to try.

    Raises:
        SettingsError: a value is impossible.
    """

    text: str | None = option(None, "file to read: .txt is one text, .jsonl one in each row", TEXT)
    prompt: str | None = option(None, "text to read, or to continue with --generate", TEXT)
    generate: int = option(0, "tokens to generate after the prompt; the model then thinks at these only", TEXT)
    max_length: int | None = option(
        None,
        "tokens of a window; longer texts are cut into windows, each read separately (default: as in its "
        "training, if its run.json says, or else 2048, or the context)",
        TEXT,
    )
    limit: int | None = option(None, "most tokens of the text to read", TEXT)
    before: str | None = option(
        None,
        "folder or hub name of the plain model that it was trained from, to compare with "
        "(default: the base model without its adapters, if it has any)",
        MODEL,
    )
    n_ahead_talk: int | None = option(
        None, "true tokens that a reward is summed over (default: as in training)", THOUGHTS
    )
    top_k: int = option(5, "number of likeliest tokens to record for each prediction", THOUGHTS)
    interventions: list[str] = option(
        list(CHOICES),
        f"replacements of each thought to try: {', '.join(CHOICES)}; or {NONE}",
        WHAT_IF,
        (*CHOICES, NONE),
    )
    thought: str | None = option(None, "your own thought, to try in the place of every thought", WHAT_IF)
    filler: str | None = option(
        None, "text of one token, used as filler (default: a dot if the tokenizer has one, else padding)", WHAT_IF
    )
    output_dir: str | None = option(
        None, "folder of the results; it must not contain a run (default: runs/MODEL-inspection)", RUN
    )
    overwrite: bool = option(False, "empty an output_dir that contains an earlier run of quietstar", RUN)
    format: str = option("jsonl", f"format of the trace: {' or '.join(FORMATS)}", RUN, FORMATS)
    report: bool = option(True, "write report.html", RUN)
    figures: bool = option(False, "also write the coloured text and the distributions as PDF and PNG", RUN)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text == "":
            raise SettingsError("text is empty; give a text file to read")
        if self.before == "":
            raise SettingsError("before is empty; give the folder or hub name of the plain model it was trained from")
        if (self.text is None) == (self.prompt is None):
            given = "both were given" if self.text is not None else "neither was given"
            raise SettingsError(f"text and prompt both name the text to read, and {given}; give one of them")
        if self.generate and self.prompt is None:
            raise SettingsError("generate was given without a prompt to continue; add --prompt")
        for name, plain in {"temperature": 0, "top_p": 1}.items():
            if not self.generate and getattr(self, name) != plain:
                raise SettingsError(f"{name} was given without generate, so nothing is generated; add --generate")
        for name in ("max_length", "limit"):
            if self.generate and getattr(self, name) is not None:
                raise SettingsError(f"{name} was given with generate, which reads the whole prompt; leave one out")
        check_at_least(self, {"generate": 0, "max_length": 2, "limit": 1})
        if NONE in self.interventions and len(self.interventions) > 1:
            raise SettingsError(
                f"interventions are {', '.join(self.interventions)}; give {NONE} alone, or leave it out"
            )
        check_text("prompt", self.prompt)
        self.trace_settings  # noqa: B018  (raises for impossible values)

    @property
    def origin(self) -> dict[str, Any]:
        """The options that say where the text comes from."""
        names = ["text", "prompt", "generate", "max_length", "limit"]
        names += ["temperature", "top_p"] if self.generate else []
        return {name: value for name in names if (value := getattr(self, name))}

    @property
    def trace_settings(self) -> TraceSettings:
        """The settings for `trace`."""
        given = {field.name: getattr(self, field.name) for field in fields(TraceSettings)}
        chosen = () if self.interventions == [NONE] else tuple(dict.fromkeys(self.interventions))
        return TraceSettings(**given | {"interventions": chosen})
