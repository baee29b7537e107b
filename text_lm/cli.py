"""The command ``python -m text_lm``: a thin shell over the functions of this package."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from foundation.command import run_command
from foundation.errors import CurationError
from foundation.options import App, number, output_option, overwrite_option, seed_option

app = App(
    help="From raw text to a language model: cut, filter, deduplicate, embed, tokenise, train, score.\n\n"
    "Every step reads and writes plain files, can be killed and run again, and prints one clear line on bad input.",
    epilog="In between, `curate cluster` and `curate sample` draw the subset from the embeddings.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Pool = Annotated[str, typer.Argument(help="Pool of passages: parquet, JSONL, a saved dataset, or a Hub name.")]
Output = Annotated[Path, output_option()]
Table = Annotated[Path, output_option(endings=(".parquet", ".pq"))]
Overwrite = Annotated[bool, overwrite_option()]
Column = Annotated[str | None, typer.Option("--column", help="Column of the text; default: text.")]
Tokens = Annotated[Path, typer.Argument(help="Folder that `tokenise` wrote.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as key=value: model.width=256 tokens=1e8.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of settings; see configs/text_lm.")]


@app.command(epilog="Example:  python -m text_lm cut crawl/ -o passages.parquet --filter language:en")
def cut(
    source: Annotated[str, typer.Argument(help="JSONL (.gz, .zst), parquet, text files, a folder of them, Hub name.")],
    output: Table,
    *,
    target: Annotated[int, number("Most characters of a passage; 0 keeps documents whole.", ge=0)] = 1000,
    shortest: Annotated[int, number("Characters of a last passage that stands alone.", ge=0)] = 200,
    filter_: Annotated[
        list[str] | None,
        typer.Option("--filter", help="length:L-H, words:L-H, language:CODES, gopher_repetition, c4, ...; repeat it."),
    ] = None,
    text_field: Annotated[str | None, typer.Option(help="Default: text, raw_content or content.")] = None,
    domain_field: Annotated[str | None, typer.Option(help="Default: domain; of text files the folder.")] = None,
    source_field: Annotated[str | None, typer.Option(help="What tells documents apart: source, url or id.")] = None,
    bad: Annotated[str, typer.Option(help="At a document that cannot be read: raise or skip.")] = "raise",
    overwrite: Overwrite = False,
) -> None:
    """Cut documents into passages at sentence ends; filter them."""
    from foundation.files import require_own
    from foundation.paths import require_outside
    from text_lm.documents import read_documents
    from text_lm.filters import open_filters
    from text_lm.passages import MADE_BY, counts_of, write_passages

    require_outside(output, source)
    for path in (output, counts_of(output)):
        require_own(path, MADE_BY, overwrite)
    skipped: list[str] = []
    documents = read_documents(source, text_field, domain_field, source_field, bad, skipped=skipped)
    counts = write_passages(documents, output, target, shortest, open_filters(filter_ or []), skipped, least=1)
    for message in skipped[:5]:
        _say(f"left out: {message}")
    for count in counts.filters:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in count.reasons.most_common(5))
        _say(f"{count.name}: {count.texts_in:,} in, {count.texts_out:,} out ({reasons or 'none dropped'})")
    _say(f"{counts.documents:,} documents ({len(skipped):,} left out), {counts.passages:,} passages in {output}")


@app.command(epilog="Example:  python -m text_lm dedup passages.parquet -o unique.parquet --near 0.7")
def dedup(
    pool: Pool,
    output: Table,
    near: Annotated[float, number("Least Jaccard similarity of duplicates; 0: exact only.", ge=0, le=1)] = 0.7,
    column: Column = None,
    overwrite: Overwrite = False,
) -> None:
    """Leave out exact and near duplicates; of each group the first row stays."""
    from curation.pools.pool import open_pool, save_pool
    from curation.preparation.text_duplicates import exact_duplicates, near_duplicates
    from foundation.files import require_own, save_json, write_atomically
    from text_lm.passages import counts_of

    made_by = "made by text_lm dedup"
    for path in (output, counts_of(output)):
        require_own(path, made_by, overwrite)
    opened = open_pool(pool, column=column)
    exact = exact_duplicates(_column(opened, "text"))
    kept = exact.kept
    counts: dict[str, Any] = {"exact": exact.counts}
    if near:
        rest = opened.select(kept)
        found = near_duplicates(_column(rest, "text"), near)
        kept, counts["near"] = kept[found.kept], {**found.counts, "threshold": near}
    write_atomically(output, lambda stream: save_pool(opened.select(kept), stream, made_by))
    save_json(counts_of(output), {"about": made_by, **counts})
    for name, count in counts.items():
        _say(f"{name}: {count['rows_in']:,} in, {count['rows_out']:,} out")


@app.command(epilog="Example:  python -m text_lm split unique.parquet -o split/ --share 0.1")
def split(
    pool: Pool,
    output: Output,
    share: Annotated[float, number("Share of each domain's rows to hold out.", gt=0, lt=1)] = 0.1,
    seed: Annotated[int, seed_option("Which documents are held out.")] = 0,
    document_column: Annotated[str, typer.Option(help="Which document a passage is from.")] = "source",
    domain_column: Annotated[str | None, typer.Option(help="Hold out documents of every domain.")] = "domain",
    column: Column = None,
    overwrite: Overwrite = False,
) -> None:
    """Hold documents out: train.parquet and test.parquet share none, and test has no text that train holds."""
    from curation.pools.pool import open_pool, save_pool
    from foundation.files import require_own, write_atomically
    from foundation.locks import locked_folder
    from text_lm.split import leave_out_seen, split_by_document

    made_by = "made by text_lm split"
    for name in ("train", "test"):
        require_own(output / f"{name}.parquet", made_by, overwrite)
    opened = open_pool(pool, column=column)
    domains = _column(opened, domain_column) if domain_column else None
    train_rows, held_out = split_by_document(_column(opened, document_column), domains, share, seed)
    test_rows = leave_out_seen(_column(opened, "text"), train_rows, held_out)
    if n := len(held_out) - len(test_rows):
        line = f"{n:,} of {len(held_out):,} held-out texts are in the training texts, too"
        if not len(test_rows):
            raise CurationError(f"{line}; leave out what repeats first: python -m text_lm dedup")
        _say(f"{line}, and are left out of the test; python -m text_lm dedup leaves out what repeats")
    with locked_folder(output):
        for name, rows in (("train", train_rows), ("test", test_rows)):
            part = opened.select(rows)
            write_atomically(output / f"{name}.parquet", partial(save_pool, part, made_by=made_by))
            _say(f"{len(part):,} rows in {output / name}.parquet")


@app.command(epilog="Example:  python -m text_lm embed split/train.parquet -o embeddings/")
def embed(
    pool: Pool,
    output: Output,
    model: Annotated[str, typer.Option(help="A sentence-transformers model: Hub name or folder.")] = "all-MiniLM-L6-v2",
    tokens_per_batch: Annotated[int, number("Tokens of a forward pass.", ge=1)] = 8192,
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes a GPU where there is one.")] = "auto",
    column: Column = None,
) -> None:
    """Embed passages for `curate cluster`."""
    from curation.embedding.sentences import embed_passages
    from curation.pools.pool import open_pool

    opened = open_pool(pool, column=column)
    result = embed_passages(
        opened, output, model, tokens_per_batch=tokens_per_batch, device=device, precision=precision
    )
    speed = f", {result.passages_per_second:,.0f} passages/s" if result.passages_per_second else ""
    _say(f"{result.n_rows:,} embeddings in {output}{speed}; {len(result.empty_rows):,} rows have no text")


@app.command(epilog="Example:  python -m text_lm tokenizer split/train.parquet -o bpe/ --size 8192")
def tokenizer(
    pool: Pool,
    output: Output,
    size: Annotated[int, number("Vocabulary, special tokens included.", ge=1, le=10_000_000)] = 8192,
    column: Column = None,
) -> None:
    """Train a byte-level BPE on a pool."""
    from curation.pools.pool import open_pool
    from text_lm.tokenizer import bpe_folder

    _trained, there = bpe_folder(open_pool(pool, column=column), size, output)
    _say(f"{size:,} tokens in {output}{', as before' * there}")


@app.command(epilog="Example:  python -m text_lm tokenise split/train.parquet -o tokens/")
def tokenise(
    pool: Pool,
    output: Output,
    tokenizer: Annotated[str, typer.Option(help="bytes, a tokenizer's folder, or a Hub name.")] = "bytes",
    column: Column = None,
) -> None:
    """Tokenise a pool once, for all subsets of it."""
    from curation.pools.pool import open_pool
    from text_lm.tokenizer import open_tokenizer
    from text_lm.tokens import tokenise_pool

    store = tokenise_pool(open_pool(pool, column=column), open_tokenizer(tokenizer), output)
    _say(f"{store.info['n_tokens']:,} tokens of {len(store):,} documents in {output}")


@app.command(epilog="Example:  python -m text_lm train tokens/ -o run/ -c configs/text_lm/recipe/demo.yaml --subset s/")
def train(
    tokens: Tokens,
    overrides: Overrides = None,
    output: Output = Path("run"),
    config: Config = None,
    subset: Annotated[Path | None, typer.Option(help="Folder of `curate sample`; default: the whole pool.")] = None,
) -> None:
    """Train a language model; the same command after a kill goes on. Exits with 143 when SIGTERM stopped it."""
    from text_lm.settings import load_settings
    from text_lm.tokens import TokenStore, subset_rows
    from text_lm.train import train as run
    from training.run_folder import is_finished

    settings, there = load_settings(config, overrides), is_finished(output)
    store = TokenStore.open(tokens)
    rows = subset_rows(subset, store) if subset else None
    if not there:
        mine = slice(None) if rows is None else np.isin(store.rows, rows)
        there_are = int(np.diff(store.starts)[mine].sum())
        budget = settings.steps * settings.tokens_per_step
        _say(f"a budget of {budget:,} tokens, {budget / max(1, there_are):.0%} of the {there_are:,} there are")
    result = run(settings, tokens, output, rows)
    if not result.finished:
        _say(f"stopped at step {result.step} of {settings.steps}; the same command goes on from there")
        raise typer.Exit(143)
    if there:
        _say(f"already there, nothing to do: {result.folder}")
        return
    seen = result.coverage
    _say(
        f"{result.tokens:,} tokens, loss {result.loss:.4f}; {seen['unique_documents_seen']:,.0f} of "
        f"{seen['unique_documents']:,.0f} documents seen, {seen['mean_repetitions']:.2f} times each; {result.folder}"
    )


@app.command(epilog="Example:  python -m text_lm perplexity run/model split/test.parquet --raw split/train.parquet")
def perplexity(
    model: Annotated[str, typer.Argument(help="Hugging Face folder of a model with its tokenizer.")],
    pool: Pool,
    raw: Annotated[str | None, typer.Option(help="Raw pool, for the raw-weighted mean; default: the pool.")] = None,
    domain_column: Annotated[str, typer.Option(help="Column of the domain.")] = "domain",
    stride: Annotated[int | None, number("Tokens between windows; default: the context.", ge=1)] = None,
    batch_size: Annotated[int, number("Windows per forward pass.", ge=1)] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Bits per byte and perplexity, per domain and summed up, as JSON."""
    from curation.pools.pool import open_pool
    from text_lm.model import load_model
    from text_lm.perplexity import domain_bytes, evaluate_perplexity, seen_in_raw
    from text_lm.tokenizer import open_tokenizer

    opened = open_pool(pool)
    whole = open_pool(raw) if raw else opened
    texts = _column(opened, "text")
    if raw and (line := seen_in_raw(texts, _column(whole, "text"))):
        _say(f"warning: {line}")
    shares = domain_bytes(_column(whole, "text"), _column(whole, domain_column))
    known = open_tokenizer(model)
    found = evaluate_perplexity(
        load_model(model, known),
        known,
        texts,
        _column(opened, domain_column),
        shares,
        stride=stride,
        batch_size=batch_size,
        device=device,
        progress=True,
    )
    typer.echo(json.dumps(found, indent=2))


@app.command(
    epilog="Example:  python -m text_lm plan -c configs/text_lm/recipe/paper_7b.yaml --vocab 32000 --device H100"
)
def plan(
    overrides: Overrides = None,
    config: Config = None,
    vocab: Annotated[int, number("Size of the vocabulary.", ge=1)] = 259,
    device: Annotated[str, typer.Option(help="Name of the GPU, as in H100 or A100.")] = "H100",
    mfu: Annotated[float, number("Share of the peak that training reaches.", gt=0, le=1)] = 0.4,
    gpus: Annotated[int, number("How many.", ge=1)] = 1,
) -> None:
    """Parameters, FLOPs, memory and hours of a run, before it starts."""
    from text_lm.plan import plan_run
    from text_lm.settings import load_settings

    for name, value in plan_run(load_settings(config, overrides), vocab, device, mfu, gpus).items():
        typer.echo(f"{name:24} {value}")


def _column(pool: Any, name: str) -> list[str]:
    from curation.pools.pool import check_text

    if name == "text" or name not in pool.column_names:
        check_text(pool, name)
    return ["" if value is None else str(value) for value in pool[name]]


def _say(text: str) -> None:
    typer.echo(text, err=True)


def main(arguments: list[str] | None = None) -> None:
    """The command; see `foundation.command.run_command` for how it ends."""
    body = partial(app, args=arguments, prog_name="python -m text_lm", standalone_mode=False)
    run_command("text_lm", body, extra="text")
