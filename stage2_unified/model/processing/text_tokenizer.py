"""The report tokenizer: byte-level BPE trained on the corpus, or a local Hugging Face tokenizer."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from medunifier.shared.errors import UserError
from medunifier.shared.files.model_folder import checked_model_folder


def train_text_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text comes back as it was, and 256 ids suffice to begin with.

    Args:
        texts: reports of the training split.
        size: most ids that it may have; fewer where the corpus gives no more merges.
    """
    tokenizer = Tokenizer(models.BPE())
    # A space before the first word: "Heart" is one token wherever it stands.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def load_text_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """A tokenizer from a local folder.

    Raises:
        UserError: if there is none, or it is damaged; nothing is fetched from a hub.
    """
    if not (Path(path) / "tokenizer_config.json").is_file():
        raise UserError(f"{path} holds no tokenizer (tokenizer_config.json is missing); give a local folder")
    with checked_model_folder(path, "a text tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    return tokenizer
