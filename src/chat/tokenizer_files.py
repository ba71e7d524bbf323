"""Reads a tokenizer from the files of a base model."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from src.errors import UserError

_CONFIGURATION = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


NAMING_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Where tokens are added beside the tokenizer's own file."""


def load_tokenizer(folder: Path) -> tuple[Any, Backend]:
    """Return Transformers' tokenizer, and what splits text for it, with the same tokens.

    Raises UserError for a tokenizer that the tokenizers library does not read.
    """
    if not (folder / "tokenizer.json").is_file() and (folder / "tokenizer.model").is_file():
        return _load_sentencepiece(folder)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(
            f"the tokenizer in {folder.name} has no tokenizer.json: expected one that the "
            "tokenizers library reads"
        )
    if (folder / "tokenizer.json").is_file():
        # The file itself: some tokenizer classes rebuild it with another space before a text.
        backend = Backend.from_file(str(folder / "tokenizer.json"))
    else:
        # A copy: Transformers changes the settings of its own with every call.
        backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _template_of_processor(folder)
    return tokenizer, _with_added_tokens(backend, tokenizer, folder)


def generation_eos_ids(folder: Path) -> list[int]:
    """Return the tokens that the base model's generation ends with."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    ids = json.loads(path.read_text()).get("eos_token_id")
    return [ids] if isinstance(ids, int) else list(ids or [])


def _with_added_tokens(backend: Backend, tokenizer: Any, folder: Path) -> Backend:
    """Add what other files name and the backend's own does not.

    What Transformers' class adds of itself is no token of this model, which has no row for it.
    """
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    files = [folder / name for name in NAMING_FILES if (folder / name).is_file()]
    named = "".join(file.read_text() for file in files)
    for _, token in sorted(tokenizer.added_tokens_decoder.items()):
        is_named = any(json.dumps(token.content, ensure_ascii=a) in named for a in (True, False))
        if token.content not in known and is_named:
            backend.add_tokens([token])
    backend.no_truncation()
    backend.no_padding()
    return backend


def _template_of_processor(folder: Path) -> str | None:
    """Models that read more than text keep their template in a file of its own."""
    path = folder / "chat_template.json"
    return json.loads(path.read_text()).get("chat_template") if path.is_file() else None


def _load_sentencepiece(folder: Path) -> tuple[Any, Backend]:
    """Read a tokenizer.model so that its ids are SentencePiece's own.

    Transformers' reader ignores the scores of the pieces and the space before a text. What stands
    beside it (added tokens, chat template) is read as beside the tokenizer.json made of it.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = _convert_sentencepiece(folder / "tokenizer.model")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        tokenizer.save_pretrained(scratch)
        path = scratch / "tokenizer_config.json"
        config = json.loads(path.read_text())
        for own in _CONFIGURATION:
            if (folder / own).is_file():
                shutil.copyfile(folder / own, scratch / own)
        own_config = json.loads(path.read_text())
        own_config = {key: value for key, value in own_config.items() if value is not None}
        names = {"tokenizer_class": "PreTrainedTokenizerFast"}
        path.write_text(json.dumps({**config, **own_config, **names}))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(scratch)
        backend = Backend.from_file(str(scratch / "tokenizer.json"))
    return tokenizer, _with_added_tokens(backend, tokenizer, folder)


def _convert_sentencepiece(path: Path) -> Any:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import normalizers
    from transformers import LlamaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    model: Any = SentencePieceProcessor(str(path))
    pieces = [model.id_to_piece(number) for number in range(model.get_piece_size())]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    scores = {piece: model.get_score(number) for number, piece in enumerate(pieces)}
    tokenizer = LlamaTokenizer(
        vocab=vocab,
        merges=generate_merges(vocab, scores),
        unk_token=pieces[model.unk_id()],
        bos_token=pieces[model.bos_id()],
        eos_token=pieces[model.eos_id()],
    )
    backend: Any = tokenizer.backend_tokenizer
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    controls = [piece for number, piece in enumerate(pieces) if model.is_control(number)]
    backend.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in controls]
    )
    return tokenizer
