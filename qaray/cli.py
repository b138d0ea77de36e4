"""`qaray COMMAND --flags`: the fields of a configuration as flags.

Nothing heavy is imported before the flags are parsed. A mistake of the user's is one line on standard error, and
exit code 2.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import click

import qaray
from qaray.observe import terminal

# Of a path that cannot be what a command needs, as opposed to a disk that fails.
WRONG_PATH = frozenset([
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
    errno.ELOOP,
])  # fmt: skip
LONGEST_LINE = 900  # characters of an error
RETRIES = re.compile(r"Failed to .+ after \d+/\d+ attempts")
USER_ERROR, FAILED = 2, 1
STOPPED, INTERRUPTED = 143, 130  # 128 + SIGTERM: stopped, to be resumed; 128 + SIGINT

# Command → its configuration, in the groups of ``qaray --help``. The configuration's docstring is the command's help.
COMMANDS = {
    "Start": {"demo": "DemoConfig", "run": "PipelineConfig"},
    "Data": {
        "generate": "GenerateConfig",
        "parse": "ParseConfig",
        "evaluate": "EvaluateConfig",
        "report": "ReportConfig",
    },
    "Models": {"make-sft": "MakeSftConfig", "fine-tune": "FineTuneConfig", "export": "ExportConfig"},
    "Cluster": {"plan": "PlanConfig", "submit": "SubmitConfig", "status": "StatusConfig"},
}
CONFIGS = {name: config for group in COMMANDS.values() for name, config in group.items()}
HEADINGS = (  # of a command's flags, in this order
    "Input",
    "Prompts",
    "Model",
    "Sampling",
    "Engine",
    "vLLM",
    "Endpoint",
    "Metrics",
    "Judge",
    "Training",
    "Output",
    "Cluster",
)


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    given = list(sys.argv[1:] if args is None else args)
    terminal.prepare()
    try:
        os.getcwd()
    except FileNotFoundError:
        return _fail("the working directory no longer exists: change to another one", USER_ERROR)
    try:
        return _commands().main(args=given, prog_name="qaray", standalone_mode=False) or 0
    except click.exceptions.Abort:
        return _fail("interrupted", INTERRUPTED)
    except click.ClickException as error:
        return _fail(error.format_message(), USER_ERROR)


class _Group(click.Group):
    """Commands under headings; their flags are made when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(CONFIGS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _command(name) if name in CONFIGS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, _summary(config)) for name, config in commands.items()])


class _Command(click.Command):
    """A command whose flags are listed under the headings of their groups."""

    def __init__(self, name: str, headings: dict[str, str], **settings: Any) -> None:
        super().__init__(name, **settings)
        self.headings = headings

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in (*HEADINGS, "Options")}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                sections[self.headings.get(parameter.name or "", "Options")].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def _commands() -> click.Group:
    group = _Group(help="Turn scientific papers into an evaluated question-answer data set, on Ray.")
    return click.version_option(qaray.__version__, prog_name="qaray")(group)


def _summary(config_name: str) -> str:
    """The first sentence of a configuration's docstring."""
    from qaray import config as configs

    return str(getattr(configs, config_name).__doc__).splitlines()[0]


def _command(name: str) -> click.Command:
    from qaray import config as configs

    config_type = getattr(configs, CONFIGS[name])
    extra = config_type.extra_flags
    flags = {flag: each for flag, each in config_type.flags().items() if flag != extra}
    positional = config_type.positional
    parameters: list[click.Parameter] = [_option(flag, each.field, flag in positional) for flag, each in flags.items()]
    parameters.append(
        click.Option(
            ["--config", "_config_file"],
            metavar="FILE",
            help="YAML file with flags as keys; flags on the command line take precedence",
        )
    )
    parameters += [click.Argument([f"_{flag}"], required=False, metavar=f"[{flag.upper()}]") for flag in positional]
    if extra:
        parameters.append(
            click.Argument(["_others"], nargs=-1, type=click.UNPROCESSED, metavar=config_type.extra_metavar)
        )

    def run(_config_file: str | None, _others: Sequence[str] = (), **values: Any) -> int:
        places = {flag: values.pop(f"_{flag}", None) for flag in positional}
        given = {flag: value for flag, value in [*values.items(), *places.items()] if value is not None}
        try:
            settings = {**(_file_values(_config_file) if _config_file else {}), **given}
            if extra:
                others = {flag: settings.pop(flag) for flag in list(settings) if flag not in flags}
                settings[extra] = {**others, **_other_flags(_others)}
            config = config_type(**settings)
        except configs.ConfigError as error:
            raise click.UsageError(str(error)) from None
        return _run(RUN[name], config)

    return _Command(
        name,
        {flag: each.heading for flag, each in flags.items()},
        params=parameters,
        callback=run,
        help=config_type.__doc__,
        epilog="BOOL is True or False; the flag alone means True." if _has_booleans(flags) else None,
        context_settings={"ignore_unknown_options": bool(extra)},
    )


def _has_booleans(flags: dict[str, Any]) -> bool:
    return any(_plain_type(flag.field.annotation) is bool for flag in flags.values())


def _other_flags(parts: Sequence[str]) -> dict[str, str]:
    """``--name value``, ``--name=value`` and bare ``--name`` (True) by name. Raises UsageError for a stray word."""
    flags: dict[str, str] = {}
    name = ""
    for part in parts:
        if part.startswith("--"):
            name, equals, value = part[2:].partition("=")
            flags[name] = value if equals else "True"
        elif name:
            flags[name], name = part, ""
        else:
            raise click.UsageError(f"unexpected argument {part!r}")
    return flags


def _option(name: str, field: Any, positional: bool) -> click.Option:
    """A flag for a field. Its default is left to the configuration, so that a file can give it."""
    kind = _plain_type(field.annotation)
    text = field.description or ""
    if positional:
        text += " (required, as a flag or as an argument)"
    elif field.is_required():
        text += " (required)"
    elif field.default not in (None, ""):
        text += f" [{field.default}]"
    if typing.get_origin(kind) is tuple:
        metavar = field.json_schema_extra["metavar"]
        return click.Option([f"--{name}"], nargs=len(typing.get_args(kind)), help=text, metavar=metavar)
    if typing.get_origin(kind) is typing.Literal:
        return click.Option([f"--{name}"], type=click.Choice(typing.get_args(kind)), help=text)
    if kind is bool:  # the seed writes --flash_attn True; a bare flag means True
        return click.Option([f"--{name}"], type=click.BOOL, is_flag=False, flag_value="True", help=text, metavar="BOOL")
    return click.Option([f"--{name}"], type=kind, help=text)


def _plain_type(annotation: Any) -> Any:
    """The type of an optional field without its None."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def _file_values(path: str) -> dict[str, Any]:
    from qaray.run.config_file import read_config

    return read_config(path)


def _run(command: Callable[[Any], int | None], config: Any) -> int:
    """Runs a command and turns what the user can mend into one line; returns the exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if config is not None and config.shows_logs:
        os.environ["QARAY_DEBUG"] = "1"
    from qaray.config import ConfigError
    from qaray.pipeline import Stopped
    from qaray.run.cluster import debugging
    from qaray.run.errors import RunError, RunRefused
    from qaray.run.waiting import bounded_waits

    try:
        with bounded_waits():
            return command(config) or 0
    except Stopped as stopped:
        return _fail(str(stopped), STOPPED)
    except Exception as error:  # Ray wraps what a task raised, a full disk among it
        if debugging():
            traceback.print_exc()
        cause = _cause(error, (ConfigError, RunError, OSError))
        here = cause is error  # a file that a worker misses is there for the user, who sees another machine
        if isinstance(cause, (ConfigError, RunRefused)) or (here and isinstance(cause, OSError) and _is_wrong(cause)):
            return _fail(_message(cause), USER_ERROR)
        if isinstance(cause, RunError):
            return _fail(_message(cause), FAILED)
        if cause is None and not _lost(error):
            raise
        message = _message(cause or error)
        return _fail(f"{message}; completed work is saved; fix the problem and rerun the command", FAILED)


def _is_wrong(error: OSError) -> bool:
    return isinstance(error, (FileNotFoundError, PermissionError)) or error.errno in WRONG_PATH


def _lost(error: Exception) -> bool:
    """Whether the cluster failed, rather than a task's code: a process, node or object was lost, a disk is full."""
    from ray.exceptions import RayError, RayTaskError

    return isinstance(error, RayError) and not isinstance(error, RayTaskError)


def _cause(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """The first of ``kinds`` among an error and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, kinds):
            inner = getattr(error, "cause", None)
            return inner if isinstance(inner, kinds) else error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


def _message(error: BaseException) -> str:
    """Without what Ray adds to the error of a task, advice on its own retries: a further argument of an OSError."""
    if isinstance(error, OSError) and error.filename and not RETRIES.match(str(error.filename)):
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError):  # pyarrow's say the number twice
        message = error.strerror if error.filename else str(error)
        return re.sub(r"(?:Detail: )?\[errno \d+\] ", "", str(message), flags=re.IGNORECASE)
    return str(error).partition("\nFailed to ")[0]


def _fail(message: str, code: int) -> int:
    """Prints one line; a longer one than LONGEST_LINE keeps its beginning and its end, where the cure is."""
    line = " ".join(message.split())
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE * 2 // 3]} … {line[-LONGEST_LINE // 3 :]}"
    print(f"qaray: {line}", file=sys.stderr, flush=True)
    return code


def _generate(config: Any) -> None:
    from qaray.pipeline import run_generate
    from qaray.run.directory import Run

    run_generate(config)
    root = Run.at(config.output_dir).root  # without the query and the secrets that a URI may hold
    print(f"results: {root}  report: {root / 'report'}/index.html")


def _evaluate(config: Any) -> None:
    from qaray.run.directory import Run

    if config.compare:
        from qaray.evaluate.compare import compare, comparison_lines

        first, second = (Run.at(folder) for folder in config.compare)
        print("\n".join(comparison_lines(compare(first, second))))
        return
    from qaray.evaluate.summary import summary_lines
    from qaray.pipeline import run_evaluate

    summary = run_evaluate(config)
    run = Run.at(config.output_dir)
    print("\n".join(summary_lines(summary)))
    print(f"scores: {run.evaluation.root}  report: {run.root / 'report'}/index.html")


def _pipeline(config: Any) -> None:
    from qaray.evaluate.summary import summary_lines
    from qaray.pipeline import run_pipeline
    from qaray.run.directory import Run

    print("\n".join(summary_lines(run_pipeline(config))))
    root = Run.at(config.generation.output_dir).root
    print(f"results: {root}  report: {root / 'report'}/index.html")


def _parse(config: Any) -> None:
    from qaray.corpus.doi_index import Ingested
    from qaray.generate.parse_outputs import parse_outputs

    counts = parse_outputs(config)
    short = f", {counts['short']} with fewer than {config.num_qas} pairs" if config.num_qas else ""
    found = f"{counts['pairs']} pairs from {counts['papers']} papers{short}"
    print(f"{found}, {counts['rejected']} rejected: {config.output_dir}")
    if counts["without_pairs"]:
        kinds = ", ".join(f"{kind.replace('_', ' ')} {n}" for kind, n in counts["without_pairs"].items())
        print(f"outputs without pairs: {kinds}")
    for note in Ingested(left_out=counts["left_out"]).notes():
        print(note)


def _report(config: Any) -> None:
    from qaray.evaluate.sources import source_of
    from qaray.observe.progress import Display
    from qaray.report.index import write_report
    from qaray.report.training import write_training_report
    from qaray.run.directory import Run

    run = Run.at(config.output_dir)
    if "examples" in (run.read_manifest() or {}):
        print(write_training_report(run))
    else:
        print(write_report(run, source_of(run), config.report_papers, Display(False).paged))


def _make_sft(config: Any) -> None:
    from qaray.finetune.make_sft import make_sft

    counts = make_sft(config)
    left_out = f"{counts['rejected']} records and {counts['pairs_left_out']} single pairs left out"
    print("\n".join([f"{counts['examples']} examples, {left_out}: {config.output}", *counts["why"]]))


def _fine_tune(config: Any) -> None:
    from qaray.pipeline import run_fine_tune
    from qaray.run.directory import Run

    manifest = run_fine_tune(config)
    print(f"model: {manifest['model']}  report: {Run.at(config.output_dir).root}/report/index.html")


def _export(config: Any) -> None:
    from qaray.finetune.export import export

    export(config.checkpoint, config.output_dir, config.dtype)
    print(f"model: {config.output_dir}")


def _plan(config: Any) -> None:
    from qaray.observe.plan import plan_corpus, plan_lines

    print("\n".join(plan_lines(plan_corpus(config))))


def _submit(config: Any) -> int:
    from qaray.observe.submit import submit

    return submit(config)


def _status(config: Any) -> int:
    from qaray.observe.status import show

    return show(config)


def _demo(config: Any) -> None:
    from qaray.pipeline import run_demo

    print(f"report: {run_demo(config)}")


RUN: dict[str, Callable[[Any], int | None]] = {
    "generate": _generate,
    "evaluate": _evaluate,
    "run": _pipeline,
    "parse": _parse,
    "report": _report,
    "make-sft": _make_sft,
    "fine-tune": _fine_tune,
    "export": _export,
    "plan": _plan,
    "submit": _submit,
    "status": _status,
    "demo": _demo,
}

if __name__ == "__main__":
    sys.exit(main())
