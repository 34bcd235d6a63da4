"""The report tokenizer: byte-level BPE trained on the corpus, or a local Hugging Face tokenizer."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from medunifier.shared.errors import UserError
from medunifier.shared.files.model_folder import checked_model_folder


def train_text_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE, which encodes any text without loss.

    Args:
        texts: reports of the training split.
        size: maximum number of ids, at least 256; fewer if the corpus has no more merges.
    """
    tokenizer = Tokenizer(models.BPE())
    # With a space before the first word, "Heart" is the same token at the beginning and within a report.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def load_text_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a local folder; nothing is downloaded.

    Raises:
        UserError: if the folder has none, or it is damaged.
    """
    if not (Path(path) / "tokenizer_config.json").is_file():
        raise UserError(f"{path} holds no tokenizer (tokenizer_config.json is missing); pass a local folder")
    with checked_model_folder(path, "a text tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        tokenizer("No effusion.")  # settings of wrong types are not noticed before
    return tokenizer
