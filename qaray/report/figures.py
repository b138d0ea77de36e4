"""The figures of the report, embedded as SVG or PNG: SciQAG's three per paper, and those of the corpus."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qaray.metrics.similarity import FLAGGED

LABELLED = 20  # maximum number of row labels in a figure
# What a figure shows of a paper with more pairs or sentences than ordinary papers have.
MAX_QUESTIONS, QUESTION_BLOCKS = 100, 50  # questions that have a row and column each; blocks of more questions
MAX_ROWS, MAX_COLUMNS = 100, 1_000  # of the coverage's heatmap
MAX_SCATTERED = 200  # pairs whose evidence is shown
INK, SOFT, ACCENT, WARM = "#1c2430", "#5c6878", "#0b5cad", "#c2410c"
mpl.rcParams.update(
    {
        "font.size": 9, "axes.edgecolor": SOFT, "axes.labelcolor": INK, "xtick.color": SOFT, "ytick.color": SOFT,
        "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none", "axes.titlesize": 10,
        "axes.titlelocation": "left", "axes.titlecolor": INK,
    }
)  # fmt: skip


def question_similarity(pairs: Sequence[dict[str, Any]], questions: int, by_judge: bool) -> Markup:
    """Lower-triangular heatmap of question similarity, in [0, 1]; cells above 0.5 are marked.

    With more than MAX_QUESTIONS questions, a cell is the mean over the compared pairs of two blocks of questions.
    """
    block = 1 if questions <= MAX_QUESTIONS else -(-questions // QUESTION_BLOCKS)
    size = -(-questions // block)
    total, count = np.zeros((size, size)), np.zeros((size, size), dtype=int)
    for pair in pairs:
        judged = [score for score in (pair["judge"], pair["judge_swapped"]) if score is not None]
        score = (float(np.mean(judged)) if judged else None) if by_judge else pair["cosine"]
        if score is not None:
            cell = pair["j"] // block, pair["i"] // block
            total[cell] += score
            count[cell] += 1
    matrix = np.divide(total, count, out=np.full((size, size), np.nan), where=count > 0)
    figure, axes, bar = _page_figure(4.6, 3.8, bar=True)
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    flagged = list(zip(*np.where(matrix > FLAGGED), strict=True))
    cells = [mpl.patches.Rectangle((column - 0.5, row - 0.5), 1, 1) for row, column in flagged]
    axes.add_collection(mpl.collections.PatchCollection(cells, facecolor="none", edgecolor=WARM))
    for row, column in flagged if size <= LABELLED else []:
        axes.text(
            column, row, f"{matrix[row, column]:.2f}".lstrip("0"), ha="center", va="center", color=WARM, fontsize=7
        )
    places, across = _ticks(size, LABELLED), _ticks(size, LABELLED // 2)
    axes.set_xticks(across, [f"Q{i * block + 1}" for i in across])
    axes.set_yticks(places, [f"Q{i * block + 1}" for i in places])
    blocks = f", means of {block} × {block}" if block > 1 else ""
    axes.set_title("Question similarity, " + ("by the judge" if by_judge else "cosine") + blocks)
    figure.colorbar(image, cax=bar)
    return _svg(figure, f"Heatmap of the similarity of {questions} questions; values above {FLAGGED} are marked")


def evidence_scatter(evidence: Sequence[Sequence[dict[str, Any]]], sentences: int) -> Markup:
    """Positions of each pair's best sentences in the paper; darker points have a higher cosine."""
    figure, axes, _ = _page_figure(4.6, 3.8)
    pairs, evidence = len(evidence), evidence[:MAX_SCATTERED]
    spots = [(one["sentence"], row, one["score"]) for row, best in enumerate(evidence, 1) for one in best]
    places, rows, scores = (list(values) for values in zip(*spots, strict=True)) if spots else ([], [], [])
    axes.scatter(places, rows, s=22, color=ACCENT, alpha=np.clip(scores, 0.15, 1.0).astype(float), linewidths=0)
    tenths = [tenth * sentences / 10 - 0.5 for tenth in range(1, 10)]
    axes.vlines(tenths, 0, len(evidence) + 1, color="#dde3ea", linewidth=0.7, zorder=0)
    axes.set(xlim=(-1, sentences), ylim=(len(evidence) + 0.5, 0.5), xlabel="sentence of the paper", ylabel="pair")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    limited = f" (first {len(evidence)} of {pairs:,} pairs)" if pairs > len(evidence) else ""
    axes.set_title("Each pair's ten best sentences, and tenths of the paper" + limited)
    return _svg(figure, f"The places of the best sentences of {len(evidence)} pairs among {sentences} sentences")


def coverage_heatmap(matrix: Sequence[Sequence[float]]) -> Markup:
    """Heatmap of the cosine of every pair and sentence, ``matrix`` [Q, S], or its means in MAX_ROWS × MAX_COLUMNS."""
    full = np.asarray(matrix, dtype=np.float32)
    scores, (down, across) = _means(full), _blocks(full.shape)
    figure, axes, bar = _page_figure(9.4, 0.9 + 0.2 * max(4, len(scores)), bar=True)
    image = axes.imshow(
        scores, aspect="auto", cmap="viridis", interpolation="nearest", vmin=min(0, float(scores.min())),
        extent=None if across == 1 else (-0.5, full.shape[1] - 0.5, len(scores) - 0.5, -0.5),
    )  # fmt: skip
    axes.set(xlabel="sentence of the paper", ylabel="pair")
    places = _ticks(len(scores), LABELLED)
    axes.set_yticks(places, [str(i * down + 1) for i in places])
    blocks = f", means of {down} × {across}" if down * across > 1 else ""
    axes.set_title("Cosine of pairs and sentences" + blocks)
    figure.colorbar(image, cax=bar)
    return _png(figure, f"Heatmap of {full.shape[0]} pairs and {full.shape[1]} sentences")


def _blocks(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a matrix that are one cell of the heatmap."""
    return max(1, -(-shape[0] // MAX_ROWS)), max(1, -(-shape[1] // MAX_COLUMNS))


def _means(matrix: np.ndarray) -> np.ndarray:
    for axis, block in enumerate(_blocks(matrix.shape)):
        if block > 1:
            starts = np.arange(0, matrix.shape[axis], block)
            sizes = np.diff(starts, append=matrix.shape[axis])
            sums = np.add.reduceat(matrix, starts, axis=axis)
            matrix = sums / (sizes[:, None] if axis == 0 else sizes)
    return matrix


def distribution(found: dict[str, Any], title: str, null: float | None = None) -> Markup:
    """Histogram of a metric over papers, with its mean; ``null``: the value expected by chance."""
    edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
    figure = Figure(figsize=(3.1, 2.1), layout="constrained")
    axes = figure.subplots()
    axes.stairs(counts, edges, fill=True, color=ACCENT, alpha=0.75)
    if found["mean"] is not None:
        axes.axvline(found["mean"], color=INK, linewidth=1.2)
    if null is not None:
        axes.axvline(null, color=WARM, linewidth=1.2, linestyle="--")
    used = [i for i, count in enumerate(counts) if count]
    if used:
        margin = edges[1] - edges[0]
        axes.set_xlim(edges[used[0]] - margin, edges[used[-1] + 1] + margin)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    axes.set_title(title)
    axes.set_ylabel("papers")
    return _svg(figure, f"{title}: histogram over {found['papers']} papers")


def yield_bars(counts: dict[str, int]) -> Markup:
    """Bar chart of papers by status."""
    figure = Figure(figsize=(3.1, 2.1), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(counts), list(counts.values()), color=ACCENT, alpha=0.75)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    axes.set_title("Yield, papers")
    return _svg(figure, "Papers by status")


def training_curve(steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> Markup:
    """Training loss and, if there are any, evaluation losses by step."""
    figure = Figure(figsize=(6.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([e["step"] for e in steps], [e["loss"] for e in steps], color=ACCENT, linewidth=1.3, label="training")
    if evaluations:
        places = [e["step"] for e in evaluations]
        axes.plot(places, [e["eval_loss"] for e in evaluations], "o--", color=WARM, label="held out")
        axes.legend(frameon=False)
    axes.set(xlabel="step", ylabel="loss of an answer's token, nats")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Loss")
    return _svg(figure, f"Loss over {len(steps)} logged steps")


def training_rate(steps: Sequence[dict[str, Any]]) -> Markup:
    """Tokens per second and learning rate by step."""
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    places = [entry["step"] for entry in steps]
    upper.plot(places, [entry["tokens_per_second"] for entry in steps], color=ACCENT, linewidth=1.3)
    upper.set_title("Tokens per second")
    lower.plot(places, [entry["learning_rate"] for entry in steps], color=ACCENT, linewidth=1.3)
    lower.set_title("Learning rate")
    lower.set_xlabel("step")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _svg(figure, "Tokens per second and learning rate by step")


def _page_figure(width: float, height: float, bar: bool = False) -> tuple[Figure, Any, Any]:
    """A figure of a paper's page, its axes and, with ``bar``, the axes of a colour bar. Sizes are in inches.

    Margins are fixed: computing them takes as long as drawing, and there are thousands of pages.
    """
    figure = Figure(figsize=(width, height))
    left, right, below, above = 0.55, 0.75 if bar else 0.15, 0.5, 0.35
    across, up = (width - left - right) / width, (height - below - above) / height
    axes = figure.add_axes((left / width, below / height, across, up))
    beside = figure.add_axes((1 - 0.6 / width, below / height, 0.15 / width, up)) if bar else None
    return figure, axes, beside


def _ticks(number: int, most: int) -> range:
    """Positions of at most ``most`` labels among ``number`` rows."""
    return range(0, number, max(1, -(-number // most)))


def _svg(figure: Figure, description: str) -> Markup:
    return _image(figure, "svg", "image/svg+xml", description)


def _png(figure: Figure, description: str) -> Markup:
    return _image(figure, "png", "image/png", description, dpi=130)


def _image(figure: Figure, kind: str, mime: str, description: str, **options: Any) -> Markup:
    """An <img> with inline data: the page stays a single file, and scripts in an image cannot run."""
    buffer = io.BytesIO()
    save: Callable[..., None] = figure.savefig
    save(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {}, **options)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img alt="{}" src="data:{};base64,{}">').format(description, mime, data)
