"""Papers whose text has changed: forgets them and their answers, so that they are read and asked again."""

from __future__ import annotations

from qaray.corpus.doi import doi_key
from qaray.corpus.papers import forget_papers
from qaray.generate.answers import drop_answers
from qaray.run.directory import Run
from qaray.run.epochs import stem_of
from qaray.run.storage import in_threads


def forget(run: Run, keys: set[str]) -> None:
    """Removes these papers and their answers. ``keys``: of doi_key. Raises Superseded.

    The papers go last: until then a rerun finds them changed. Their input files count as unread.
    """
    files = run.generation_files()

    def drop(name: str) -> None:
        dois = (run.papers / f"{name}.parquet").read_table(["doi"])["doi"].to_pylist()
        if gone := {doi for doi in dois if doi_key(doi) in keys}:
            drop_answers(run, files.get(stem_of(name), []), gone)

    run.unfinish()
    for _ in in_threads(drop, run.shard_names()):
        pass
    forget_papers(run, keys)
