"""What the tests share: small random checkpoints of five families, a tiny task, and a fresh Python process."""
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")                 # before anything imports huggingface_hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")                # before anything imports torch: several tests run side by side

import subprocess
import sys
import textwrap
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("bert", "roberta", "distilbert", "gpt2", "modernbert")
POSITIONS = 96                                               # tokens that each small checkpoint can take
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCES = ["the soup was good and the bread was warm", "a bad film with a bad ending", "good battery, bad screen",
             "we would go there again", "nothing works and nobody answers", "the best book of the year, by far"]


def _wordpiece():
    "Vocabulary (piece → id) for WordPiece: the words of SENTENCES and single letters. (The library's trainer breaks ties differently each time.)"
    import string
    words = sorted({word for text in SENTENCES for word in text.replace(",", " ,").split()})
    letters = [*string.ascii_lowercase, *string.digits, "."]
    pieces = [*BERT_SPECIAL, *words, *letters, *("##" + letter for letter in letters)]
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}


def _byte_pairs(special):
    "Byte-level BPE trained on SENTENCES, its special tokens first."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _vocab_and_merges(special):
    "The same as vocabulary and merges, which is what the classes of GPT-2 and RoBERTa take."
    import json
    model = json.loads(_byte_pairs(special).to_str())["model"]
    return dict(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def _tokenizer(family):
    "A tokenizer of the class and with the special tokens that the family's own checkpoints have."
    import transformers as t
    from tokenizers import processors
    if family == "bert": return t.BertTokenizer(vocab=_wordpiece(), model_max_length=POSITIONS)
    if family == "distilbert": return t.DistilBertTokenizer(vocab=_wordpiece(), model_max_length=POSITIONS)
    if family == "roberta": return t.RobertaTokenizer(**_vocab_and_merges(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]), model_max_length=POSITIONS)
    if family == "gpt2": return t.GPT2Tokenizer(**_vocab_and_merges(["<|endoftext|>"]), model_max_length=POSITIONS)
    backend = _byte_pairs(BERT_SPECIAL)
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return t.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
                                     mask_token="[MASK]", model_input_names=["input_ids", "attention_mask"], model_max_length=POSITIONS)


def _network(family, vocab_size, positions):
    "The model that the family publishes (pretraining head included, GPT-2 without), small and random."
    import transformers as t
    size = dict(vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    if family == "bert": return t.BertForPreTraining(t.BertConfig(**size, max_position_embeddings=positions))
    if family == "roberta":  # its positions are counted from pad_token_id + 1
        return t.RobertaForMaskedLM(t.RobertaConfig(**size, max_position_embeddings=positions + 2, type_vocab_size=1))
    if family == "distilbert":
        return t.DistilBertForMaskedLM(t.DistilBertConfig(vocab_size=vocab_size, dim=32, n_layers=2, n_heads=4, hidden_dim=64,
                                                          max_position_embeddings=positions))
    if family == "gpt2":
        return t.GPT2Model(t.GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=positions, bos_token_id=0, eos_token_id=0))
    return t.ModernBertForMaskedLM(t.ModernBertConfig(**size, max_position_embeddings=positions, local_attention=8, global_attn_every_n_layers=2,
                                                      pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3))


def write_checkpoint(family, folder, positions=POSITIONS):
    "A small random checkpoint of `family` in `folder`: config.json, model.safetensors and the tokenizer's files."
    import torch
    from tutorial_clf.pretrained import quiet
    tokenizer = _tokenizer(family)
    tokenizer.model_max_length = positions
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(FAMILIES.index(family))
        network = _network(family, len(tokenizer), positions)
        for name, weight in network.named_parameters():      # larger than usual, so that different texts get different answers
            if weight.ndim > 1: torch.nn.init.normal_(weight, std=0.2)
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return Path(folder)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    "family → folder of its small random checkpoint (do not write to it); `positions=` for one that takes longer texts."
    @lru_cache
    def make(family, positions=POSITIONS):
        return write_checkpoint(family, tmp_path_factory.mktemp(family) / "model", positions)
    return make


@pytest.fixture(scope="session")
def toy_task():
    """toy_task(train=24, validation=12, noise=False, …) → Task with three classes told apart by one word each, or by nothing.

    Label names with a space, an umlaut and a sign outside of Latin-1; a column more than needed.
    """
    def make(train=24, validation=12, test=12, noise=False, seed=0, names=("a bad thing", "güt", "☃ neither")):
        import numpy as np
        from datasets import ClassLabel, Dataset, Features, Value
        from tutorial_clf.data import Task
        rng = np.random.default_rng(seed)
        features = Features(text=Value("string"), label=ClassLabel(names=list(names)), origin=Value("string"))
        def rows(n):
            words = [["bad", "good", "book"][i % len(names)] for i in range(n)]
            labels = rng.integers(len(names), size=n) if noise else np.arange(n) % len(names)
            fill = lambda: " ".join(rng.choice(["the", "soup", "film", "was", "there", "again", "of"], size=rng.integers(1, 9)))
            return Dataset.from_dict({"text": [f"{fill()} {word} {fill()}" for word in words], "label": labels, "origin": ["made"] * n}, features=features)
        splits = dict(train=rows(train), validation=rows(validation), test=rows(test))
        counts = {split: np.bincount(rows["label"], minlength=len(names)).tolist() for split, rows in splits.items()}
        return Task("toy", list(names), **splits, card={"counts": counts})
    return make


@pytest.fixture
def run_python():
    """Run code in a fresh Python process and return what it printed.

    Nothing of this process's proxies, of its Hub settings or of its cache is inherited; `env` adds to what is left.
    """
    def run(code, seconds=60, **env):
        kept = {key: value for key, value in os.environ.items()
                if not key.lower().endswith("_proxy") and not key.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_"))}
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, env=kept | env, capture_output=True, text=True,
                              encoding="utf-8", timeout=seconds)
        assert done.returncode == 0, done.stderr
        return done.stdout
    return run


def pytest_collection_modifyitems(items):
    "The chapters take longest, so both workers of `make test` begin with chapters: half of them come first, half in the middle."
    long = [item for item in items if item.path.name == "test_notebooks.py"]
    short = [item for item in items if item not in long]
    half = len(short) // 2
    items[:] = long[::2] + short[:half] + long[1::2] + short[half:]
