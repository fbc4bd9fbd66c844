"""The embedded default's tokenizer: one token a word, one token a whole number.

Digit-level bases of this size stay too weak at arithmetic for RL to have anything to amplify, so every whole number
up to `LARGEST_NUMBER` is a token of its own.
"""

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LARGEST_NUMBER = 255
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
SYMBOLS = list("+-*/=().,:?")
WORDS = ["User", "Assistant", "pick", "use", "two", "all", "of", "to", "make", "what", "is", "does", "off", "yes", "no"]
WORDS += ["wait", "maybe", "so", "the", "answer", "try", "i", "think", "pairs", "join", "write", "and", "def"]
WORDS += ["f", "x", "return"]
WORD_PATTERN = r"</?\w+>|\d+|[A-Za-z]+|\S"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer over the closed vocabulary; anything else reads as `<unk>`."""
    tokens = [*SPECIAL, *TAGS, *SYMBOLS, *dict.fromkeys(WORDS), *map(str, range(LARGEST_NUMBER + 1))]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
