"""Our encoder beside transformers' BERT: sizes, lengths, masks, gradients and training steps that no lesson has fixed in advance."""
import copy
import random
import re
from pathlib import Path

import nbformat
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from tutorial_clf.data import load_task
from tutorial_clf.encoder import ACTIVATIONS, NAMES, Config, Encoder, EncoderClassifier, MultiHeadAttention, from_transformers, to_transformers
from tutorial_clf.pretrained import ModelError, load_classifier, load_encoder, load_tokenizer, quiet

ROOT = Path(__file__).resolve().parents[1]
examples = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**32 - 1)


def largest(a, b): return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def same_gradients(ours, theirs, loss_of):
    "Gradients of every weight agree to 1e-4 of the largest one of the model."
    for model in (ours, theirs):
        model.zero_grad()
        loss_of(model).backward()
    mine, reference = to_transformers({name: weight.grad for name, weight in ours.named_parameters()}), {name: weight.grad for name, weight in theirs.named_parameters()}
    assert mine.keys() == reference.keys()
    scale = max(gradient.abs().max() for gradient in reference.values())
    assert scale > 0 and max((mine[name] - reference[name]).abs().max() for name in mine) <= 1e-4 * scale


@st.composite
def shapes(draw):
    "Sizes of a small BERT: any number of heads, layers, segments and positions, every activation."
    heads = draw(st.integers(1, 4))
    return dict(vocab_size=draw(st.integers(5, 40)), hidden_size=heads * draw(st.integers(1, 6)) * 2, num_hidden_layers=draw(st.integers(1, 3)), num_attention_heads=heads,
                intermediate_size=draw(st.integers(1, 40)), max_position_embeddings=draw(st.integers(1, 24)), type_vocab_size=draw(st.integers(1, 3)),
                hidden_act=draw(st.sampled_from(sorted(ACTIVATIONS))), layer_norm_eps=draw(st.sampled_from([1e-12, 1e-5])), pad_token_id=draw(st.integers(0, 4)))


def library_classifier(classes=3, **size):
    "A BertForSequenceClassification with weights large enough to matter, biases and norms too."
    with quiet(): model = BertForSequenceClassification(BertConfig(**size, num_labels=classes))
    for weight in model.parameters(): nn.init.normal_(weight, std=0.3)
    return model.eval()


def any_batch(config, length, rows=4):
    "Token numbers, the padding token among them; masks with padding on any side and holes, but a token in each row; segments."
    mask = (torch.rand(rows, length) < 0.7).long()
    mask[torch.arange(rows), torch.randint(length, (rows,))] = 1
    mask[0] = 1
    return dict(input_ids=torch.randint(config.vocab_size, (rows, length)), attention_mask=mask, token_type_ids=torch.randint(config.type_vocab_size, (rows, length)))


@pytest.fixture(scope="module")
def minilm(): return Encoder.from_pretrained("minilm"), load_encoder("minilm"), load_tokenizer("minilm")


# ---- sizes

def test_the_encoder_fits_into_200_lines():
    cells = [cell.source.splitlines() for cell in nbformat.read(ROOT / "nbs" / "04_encoder.ipynb", 4).cells if re.match(r"#\|\s*export", cell.source)]
    assert sum(len(lines) - 1 for lines in cells) <= 200


@pytest.mark.parametrize("size, with_pooler, without", [(dict(hidden_size=384, num_hidden_layers=6, intermediate_size=1536), 22_713_216, 22_565_376),
                                                        (dict(), 109_482_240, 108_891_648)], ids=["MiniLM", "BERT-base"])
def test_number_of_weights(size, with_pooler, without):
    with torch.device("meta"):
        for pooler, wanted in ((True, with_pooler), (False, without)):
            theirs = BertModel(BertConfig(**size), add_pooling_layer=pooler)
            assert sum(p.numel() for p in Encoder(Config(**size), pooler).parameters()) == wanted == theirs.num_parameters()


def test_names_go_both_ways():
    assert len(set(NAMES.values())) == len(NAMES)
    theirs = library_classifier(vocab_size=9, hidden_size=8, num_hidden_layers=12, num_attention_heads=2, intermediate_size=8).state_dict()
    assert to_transformers(from_transformers(theirs)).keys() == theirs.keys()
    with pytest.raises(ModelError, match="norm.weight"): to_transformers(Encoder(Config(9, 8, 1, 2, 8, norm_first=True)).state_dict())


# ---- random checkpoints

@examples
@given(size=shapes(), seed=seeds, data=st.data())
def test_states_and_gradients_of_any_small_bert(size, seed, data, tmp_path_factory):
    torch.manual_seed(seed)
    theirs, folder = library_classifier(**size), tmp_path_factory.mktemp("bert")
    with quiet(): theirs.save_pretrained(folder)
    ours, bare = EncoderClassifier.from_pretrained(folder, ["a", "b", "c"]), Encoder.from_pretrained(folder)
    batch = any_batch(theirs.config, data.draw(st.integers(1, size["max_position_embeddings"])))
    with torch.no_grad():
        reference = theirs(**batch, output_hidden_states=True)
        states = bare(**batch, hidden_states=True)
        assert len(states) == size["num_hidden_layers"] + 1 and largest(states, reference.hidden_states) <= 1e-5
        assert torch.equal(bare(**batch), states[-1])
        assert largest([ours(**batch)], [reference.logits]) <= 1e-5
    labels = torch.arange(4) % 3
    same_gradients(ours, theirs, lambda model: F.cross_entropy(getattr(out := model(**batch), "logits", out), labels))


def test_every_length_from_one_to_the_maximum(checkpoint):
    ours, theirs = Encoder.from_pretrained(checkpoint("bert")), load_encoder(checkpoint("bert"))
    torch.manual_seed(0)
    P = ours.config.max_position_embeddings
    for length in range(1, P + 1):
        batch = any_batch(theirs.config, length, rows=3)
        with torch.no_grad(): assert largest(ours(**batch, hidden_states=True), theirs(**batch, output_hidden_states=True).hidden_states) <= 1e-5, length
    with pytest.raises(ValueError, match=f"^{P + 1} tokens do not fit"): ours(torch.ones(1, P + 1, dtype=torch.long))


def test_checkpoints_without_pooler_in_half_precision_and_in_parts(tmp_path):
    size = dict(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    with quiet():
        BertForMaskedLM(BertConfig(**size)).save_pretrained(tmp_path / "masked")
        BertModel(BertConfig(**size)).half().save_pretrained(tmp_path / "half")
        BertModel(BertConfig(**size)).save_pretrained(tmp_path / "parts", max_shard_size="8KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    ids = torch.randint(30, (2, 7))
    for name in ("masked", "half", "parts"):
        ours = Encoder.from_pretrained(tmp_path / name)
        assert not ours.training and all(weight.dtype == torch.float32 and weight.requires_grad for weight in ours.parameters())
        with torch.no_grad(): assert largest([ours(ids)], [load_encoder(tmp_path / name)(ids).last_hidden_state]) <= 1e-5


@pytest.mark.parametrize("family", ["roberta", "distilbert", "gpt2", "modernbert"])
def test_other_families_are_refused_in_one_sentence(family, checkpoint):
    with pytest.raises(ModelError, match=family) as error: Encoder.from_pretrained(checkpoint(family))
    assert "\n" not in str(error.value)


# ---- what is given to it

def test_rows_of_nothing_but_padding_are_refused():
    encoder = Encoder(Config(20, 8, 1, 2, 8, 10)).eval()
    ids, mask = torch.ones(3, 4, dtype=torch.long), torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    for given in (mask, mask.bool(), mask.float()):
        with pytest.raises(ValueError, match="^Row 1 of the batch is nothing but padding[^\n]*$"): encoder(ids, given)
    with pytest.raises(ValueError, match="nothing but padding"): encoder(ids[:, :0])
    with pytest.raises(ValueError, match="one number for each token"): encoder(ids, mask[:, :3])
    assert encoder(ids[:0]).shape == (0, 4, 8)


@examples
@given(seed=seeds, causal=st.booleans(), norm_first=st.booleans(), length=st.integers(1, 10), more=st.integers(0, 5))
def test_padding_reaches_no_real_token(seed, causal, norm_first, length, more):
    torch.manual_seed(seed)
    encoder = Encoder(Config(20, 8, 2, 2, 12, 16, initializer_range=0.5, is_decoder=causal, norm_first=norm_first)).eval()
    ids = torch.randint(20, (3, length + more))
    mask = (torch.arange(length + more) < length).long().expand(3, -1)
    with torch.no_grad(): assert largest([encoder(ids, mask)[:, :length]], [encoder(ids[:, :length])]) <= 1e-5


@examples
@given(seed=seeds, norm_first=st.booleans(), length=st.integers(2, 12), data=st.data())
def test_causal_states_depend_on_nothing_later(seed, norm_first, length, data):
    torch.manual_seed(seed)
    encoder = Encoder(Config(20, 8, 2, 2, 12, 16, initializer_range=0.5, is_decoder=True, norm_first=norm_first)).eval()
    cut = data.draw(st.integers(1, length - 1))
    ids = torch.randint(20, (2, length))
    other = torch.cat([ids[:, :cut], torch.randint(20, (2, length - cut))], 1)
    with torch.no_grad(): assert largest([encoder(ids)[:, :cut]], [encoder(other)[:, :cut]]) <= 1e-6


@examples
@given(seed=seeds, queries=st.integers(1, 6), keys=st.integers(1, 6))
def test_cross_attention_does_not_know_the_order_of_the_memory(seed, queries, keys):
    torch.manual_seed(seed)
    attend = MultiHeadAttention(Config(hidden_size=12, num_attention_heads=3)).eval()
    x, memory, order = torch.randn(2, queries, 12), torch.randn(2, keys, 12), torch.randperm(keys)
    mask = torch.rand(2, 1, 1, keys) < 0.7
    mask[..., 0] = True
    with torch.no_grad():
        found = attend(x, mask, memory)
        assert found.shape == (2, queries, 12) and largest([attend(x, mask[..., order], memory[:, order])], [found]) <= 1e-5


# ---- real weights, new sentences

def test_minilm_on_sentences_drawn_anew(minilm):
    ours, theirs, tokenizer = minilm
    words = "soup the and naïve 🦆 1,000 % unbelievable Zürich don't [SEP] a".split()
    texts = random.SystemRandom().sample(list(load_task("reviews").test["text"]), 28) + [" ".join(random.choices(words, k=n)) for n in (1, 2, 7, 60)]
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    assert batch["attention_mask"].min() == 0
    with torch.no_grad(): assert largest(ours(**batch, hidden_states=True), theirs(**batch, output_hidden_states=True).hidden_states) <= 1e-5
    head, labels = torch.randn(384, 2), torch.randint(2, (32,))
    def loss(model): return F.cross_entropy((model.pool(model(**batch)) if model is ours else model(**batch).pooler_output) @ head, labels)
    same_gradients(ours, theirs, loss)


def test_predicting_changes_no_weights(minilm):
    ours, _, tokenizer = minilm
    before = {name: weight.clone() for name, weight in ours.state_dict().items()}
    with torch.no_grad(): ours(**tokenizer(["a text"], return_tensors="pt"))
    assert all(torch.equal(before[name], weight) for name, weight in ours.state_dict().items()) and not ours.training


# ---- the classifier

def test_the_same_seed_draws_the_same_new_head(checkpoint):
    torch.manual_seed(3)
    theirs = load_classifier(checkpoint("bert"), ["no", "yes", "perhaps"])
    after = torch.rand(1)
    torch.manual_seed(3)
    ours = EncoderClassifier.from_pretrained(checkpoint("bert"), ["no", "yes", "perhaps"])
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(ours.head.weight, theirs.classifier.weight) and torch.equal(ours.head.bias, theirs.classifier.bias)


def test_weights_pass_both_ways(checkpoint):
    ours = EncoderClassifier.from_pretrained(checkpoint("bert"), ["no", "yes"])
    for weight in ours.parameters(): nn.init.normal_(weight, std=0.3)
    theirs = load_classifier(checkpoint("bert"), ["no", "yes"])
    theirs.load_state_dict(to_transformers(ours.state_dict()))
    batch = any_batch(theirs.config, 20)
    with torch.no_grad(): assert largest([ours(**batch)], [theirs(**batch).logits]) <= 1e-5


@pytest.mark.parametrize("dropout", [False, True], ids=["without dropout", "with dropout"])
def test_twenty_steps_of_training_are_the_same(dropout, checkpoint):
    def run(model):
        torch.manual_seed(0)
        model.train(dropout)
        optimiser, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
        for step in range(20):
            batch = any_batch(theirs.config, 3 + step, rows=8)
            loss = F.cross_entropy(getattr(out := model(**batch), "logits", out), batch["input_ids"][:, 0] % 2)
            loss.backward(); optimiser.step(); optimiser.zero_grad()
            losses.append(loss.item())
        return torch.tensor(losses)
    theirs = load_classifier(checkpoint("bert"), ["no", "yes"])
    ours = EncoderClassifier.from_pretrained(checkpoint("bert"), ["no", "yes"])
    ours.load_state_dict(from_transformers(copy.deepcopy(theirs.state_dict())))
    mine, reference = run(ours), run(theirs)
    assert (mine - reference).abs().max() <= 1e-4 and mine.std() > 0
