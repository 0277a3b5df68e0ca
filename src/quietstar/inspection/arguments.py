"""What `quietstar inspect` can be told."""

from dataclasses import dataclass
from typing import Any

from quietstar.errors import SettingsError
from quietstar.inference.loading import MODEL, THOUGHTS
from quietstar.inference.speak import TEXT, SpeakArguments
from quietstar.inspection.interventions import CHOICES
from quietstar.inspection.settings import TraceSettings
from quietstar.inspection.trace import FORMATS
from quietstar.runs.fields import option
from quietstar.text.unicode import check_text

WHAT_IF = "are they used?"
RUN = "run"
NONE = "none"


@dataclass(kw_only=True)
class InspectArguments(SpeakArguments):
    """What to inspect, and what to try in the thoughts' place.

    Raises:
        SettingsError: a value is impossible.
    """

    text: str | None = option(None, "text file to read", TEXT)
    prompt: str | None = option(None, "text to read, or to go on from with --generate", TEXT)
    generate: int = option(0, "tokens to write after the prompt; then these alone are thought before", TEXT)
    max_length: int | None = option(
        None,
        "a longer text is cut into windows of so many tokens, each read alone (default: 2048, or the context)",
        TEXT,
    )
    limit: int | None = option(None, "tokens of the text to read at most", TEXT)
    before: str | None = option(
        None,
        "folder or hub name of the plain model that it was trained from, to compare with it too "
        "(default: the base model with its adapters switched off, where it has some)",
        MODEL,
    )
    n_ahead_talk: int | None = option(
        None, "true tokens that a reward is summed over (default: as the model was trained)", THOUGHTS
    )
    top_k: int = option(5, "likeliest tokens to keep of each prediction", THOUGHTS)
    interventions: list[str] = option(
        list(CHOICES), f"what to try in each thought's place: {', '.join(CHOICES)}; or {NONE}", WHAT_IF
    )
    thought: str | None = option(None, "a thought of yours to try in the place of every thought", WHAT_IF)
    filler: str | None = option(
        None, "text of one token, the filler (default: a dot where the tokenizer has one, else padding)", WHAT_IF
    )
    output_dir: str | None = option(
        None, "folder of the results; it must not hold a run already (default: runs/MODEL-inspection)", RUN
    )
    overwrite: bool = option(False, "empty an output_dir that holds an earlier run of ours", RUN)
    format: str = option("jsonl", f"of the trace: {' or '.join(FORMATS)}", RUN)
    report: bool = option(True, "write report.html", RUN)
    figures: bool = option(False, "draw the coloured text and the distributions as PDF and PNG, too", RUN)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text == "":
            raise SettingsError("text is empty; give a text file to read")
        if self.before == "":
            raise SettingsError("before is empty; give the folder or hub name of the plain model it was trained from")
        if (self.text is None) == (self.prompt is None):
            given = "both were given" if self.text is not None else "neither was given"
            raise SettingsError(f"text and prompt are two ways to name what is read, and {given}; give one of them")
        if self.generate and self.prompt is None:
            raise SettingsError("generate was given without a prompt to go on from; add --prompt")
        for name, plain in {"temperature": 0, "top_p": 1}.items():
            if not self.generate and getattr(self, name) != plain:
                raise SettingsError(f"{name} was given without generate, and nothing is written; add --generate")
        for name in ("max_length", "limit"):
            if self.generate and getattr(self, name) is not None:
                raise SettingsError(f"{name} was given with generate, which reads the whole prompt; leave one out")
        for name, lowest in {"generate": 0, "max_length": 2, "limit": 1}.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise SettingsError(f"{name} is {value}; give a number of at least {lowest}")
        if self.format not in FORMATS:
            raise SettingsError(f"format is {self.format!r}; choose from {', '.join(FORMATS)}")
        if NONE in self.interventions and len(self.interventions) > 1:
            raise SettingsError(
                f"interventions are {', '.join(self.interventions)}; give {NONE} alone, or leave it out"
            )
        check_text("prompt", self.prompt)
        self.trace_settings  # noqa: B018  (says what is impossible)

    @property
    def origin(self) -> dict[str, Any]:
        """Where the text comes from, as far as it was said."""
        names = ["text", "prompt", "generate", "max_length", "limit"]
        names += ["temperature", "top_p"] if self.generate else []
        return {name: value for name in names if (value := getattr(self, name))}

    @property
    def trace_settings(self) -> TraceSettings:
        """As `trace` takes them."""
        return TraceSettings(
            think=self.think,
            thought_temperature=self.thought_temperature,
            thought_top_p=self.thought_top_p,
            n_ahead_talk=self.n_ahead_talk,
            top_k=self.top_k,
            interventions=() if self.interventions == [NONE] else tuple(dict.fromkeys(self.interventions)),
            thought=self.thought,
            filler=self.filler,
            seed=self.seed,
        )
