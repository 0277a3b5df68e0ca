"""Options of `quietstar evaluate`."""

from dataclasses import dataclass

from quietstar.errors import SettingsError
from quietstar.evaluation.direct import MAX_LENGTH
from quietstar.evaluation.lengths import swept_lengths
from quietstar.evaluation.sweep import swept_rule
from quietstar.evaluation.tasks import TASKS, find_task, parse_data
from quietstar.evaluation.voting import VotingSettings
from quietstar.inference.loading import UseArguments
from quietstar.runs.fields import option

WHAT = "what to evaluate"
VOTES = "chain of thought with a majority vote"
RUN = "run"
_VOTING = VotingSettings()


@dataclass(kw_only=True)
class EvaluateArguments(UseArguments):
    """Options of `quietstar evaluate`: at least tasks, a text whose perplexity to measure, or tasks of lm-eval.

    Raises:
        SettingsError: a value is invalid, or there is nothing to evaluate.
    """

    tasks: list[str] = option([], f"tasks: {', '.join(TASKS)}", WHAT, TASKS)
    data: list[str] = option(
        [], "local files instead of the hub's: gsm8k=FILE csqa=FILE (.jsonl .json, also .gz .zst, .parquet)", WHAT
    )
    limit: int | None = option(None, "evaluate at most this many items of each task, or windows of a text", WHAT)
    perplexity: str | None = option(
        None,
        "text whose perplexity to measure, by difficulty of the token: .txt is one text, .jsonl one in each row",
        WHAT,
    )
    lm_eval: str | None = option(None, "tasks of lm-eval, separated by commas (extra: lm-eval)", WHAT)
    lm_eval_path: str | None = option(None, "folder with lm-eval task files of your own; they can run code", WHAT)
    original: bool = option(
        False, "evaluate a plain model, or the base model of a thinking one, without thoughts", WHAT
    )
    baseline: str | None = option(
        None, "folder of an earlier evaluation to compare with item by item, such as the untrained model's", WHAT
    )
    sweep: bool = option(
        False, "sweep the threshold of --think, and plot answer probability by share of positions with a thought", WHAT
    )
    sweep_n_ahead: str | None = option(
        None, "lengths of thoughts, such as 2,4,8,16: plot answer probability and nll by forward passes a token", WHAT
    )
    max_length: int = option(MAX_LENGTH, "maximum tokens of an item or window; longer items are cut at the start", WHAT)

    cot: bool = option(False, "use chain of thought, and take the majority of several answers", VOTES)
    cot_prompt: str = option(_VOTING.prompt, "text after the question", VOTES)
    cut_over: str = option(_VOTING.cut_over, "text before the answer", VOTES)
    votes: int = option(_VOTING.n_votes, "number of answers to each question", VOTES)
    cot_temperature: float = option(_VOTING.temperature, "temperature of the text; 0 is greedy", VOTES)
    cot_tokens: int = option(_VOTING.max_new_tokens, "maximum tokens of reasoning", VOTES)
    answer_tokens: int = option(_VOTING.answer_tokens, "maximum tokens of the answer", VOTES)

    output_dir: str | None = option(None, "folder of the results (default: runs/MODEL-evaluation)", RUN)
    overwrite: bool = option(False, "empty output_dir if it has an earlier run", RUN)
    resume: bool = option(False, "go on in output_dir where the run was stopped, or begin", RUN)
    batch_size: int = option(32, "number of items to score at a time", RUN)

    def __post_init__(self) -> None:
        for name in self.tasks:
            find_task(name, f", or give --lm_eval {name}")
        super().__post_init__()
        if not (self.tasks or self.perplexity or self.lm_eval):
            raise SettingsError(f"nothing to evaluate; give --tasks ({', '.join(TASKS)}), --perplexity or --lm_eval")
        unused = sorted(parse_data(self.data).keys() - set(self.tasks))
        if unused:
            raise SettingsError(f"data was given for {', '.join(unused)}, but not the task; add it to --tasks")
        for name in ("batch_size", "votes", "cot_tokens", "answer_tokens"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; give a number of at least 1")
        if self.limit is not None and self.limit < 1:
            raise SettingsError(f"limit is {self.limit}; give a number of at least 1")
        if self.max_length < 2:
            raise SettingsError(f"max_length is {self.max_length}; give a number of at least 2")
        if not self.cot_temperature >= 0:
            raise SettingsError(f"cot_temperature is {self.cot_temperature}; give a number of at least 0")
        if self.cot and not self.tasks:
            raise SettingsError("cot was given without a task; add --tasks gsm8k")
        if self.sweep:
            swept_rule(self.think)
            if self.original or not self.tasks:
                raise SettingsError("sweep needs a model that thinks and a task; leave --original out, give --tasks")
        if self.sweep_n_ahead is not None:
            swept_lengths(self.sweep_n_ahead)
            if self.original or not (self.tasks or self.perplexity):
                raise SettingsError(
                    "sweep_n_ahead needs a model that thinks and a task or a text; leave --original out, give --tasks "
                    "or --perplexity"
                )
        if self.original and self.n_ahead is not None:
            raise SettingsError("n_ahead was given, but with original there are no thoughts; leave one of them out")
        if self.resume and self.overwrite:
            raise SettingsError("resume and overwrite were both given; leave one out")
        # a shell passes a newline as the two characters \ and n
        self.cot_prompt, self.cut_over = (text.replace("\\n", "\n") for text in (self.cot_prompt, self.cut_over))

    @property
    def lengths(self) -> list[int]:
        """The values of n_ahead to sweep, rising."""
        return [] if self.sweep_n_ahead is None else swept_lengths(self.sweep_n_ahead)

    @property
    def voting(self) -> VotingSettings:
        """Return the settings of the majority vote."""
        return VotingSettings(
            prompt=self.cot_prompt,
            cut_over=self.cut_over,
            n_votes=self.votes,
            temperature=self.cot_temperature,
            max_new_tokens=self.cot_tokens,
            answer_tokens=self.answer_tokens,
        )
