"""Attention, masks, heads and positions for random shapes and numbers, against torch and loops; the view on texts nobody has chosen."""
import base64
import math
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutorial_clf.attention import (Checks, attention, attention_html, causal_mask, explore, join_heads, look, padding_mask, plot_attention,
                                    rotate, sinusoidal, split_heads)
from tutorial_clf.pretrained import load_encoder, load_tokenizer

some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
few = settings(some, max_examples=10)

size = st.integers(1, 6)
seeds = st.integers(0, 2**31)


def randn(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ---- attention

@st.composite
def problems(draw):
    "query, key, value, loss weights and a mask (or None) of random shapes, with rows that may look nowhere."
    B, H, Q, K, d, v = (draw(size) for _ in range(6))
    seed = draw(seeds)
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    query, key, value, weights = (scale * randn(seed, B, H, Q, d), randn(seed + 1, B, H, K, d), randn(seed + 2, B, H, K, v), randn(seed + 3, B, H, Q, v))
    shape = draw(st.sampled_from([None, (B, H, Q, K), (B, 1, 1, K), (Q, K), (B, 1, Q, 1)]))
    share = draw(st.sampled_from([0.2, 0.7, 1.0]))
    mask = None if shape is None else torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    return query, key, value, weights, mask


def with_gradients(function, query, key, value, weights):
    tensors = [t.clone().requires_grad_() for t in (query, key, value)]
    output = function(*tensors)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), tensors)]


@some
@given(problems())
def test_attention_equals_torch_with_gradients(problem):
    *tensors, mask = problem
    ours = with_gradients(lambda q, k, v: attention(q, k, v, mask)[0], *tensors)
    theirs = with_gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), *tensors)
    for a, b in zip(ours, theirs): torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@some
@given(problems())
def test_attention_equals_loops(problem):
    query, key, value, _, mask = problem
    output, weights = attention(query, key, value, mask)
    B, H, Q, K = weights.shape
    allowed = torch.ones(B, H, Q, K, dtype=torch.bool) if mask is None else mask.expand(B, H, Q, K)
    for b, h, i in np.ndindex(B, H, Q):
        seen = [j for j in range(K) if allowed[b, h, i, j]]
        scores = {j: float(query[b, h, i] @ key[b, h, j]) / math.sqrt(query.shape[-1]) for j in seen}
        powers = {j: math.exp(s - max(scores.values())) for j, s in scores.items()}
        expected = torch.tensor([powers[j] / sum(powers.values()) if j in powers else 0.0 for j in range(K)], dtype=torch.float64)
        torch.testing.assert_close(weights[b, h, i], expected, atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(output[b, h, i], expected @ value[b, h], atol=1e-12, rtol=1e-10)


@some
@given(problems())
def test_weights_are_shares_and_outputs_stay_between_the_values(problem):
    query, key, value, _, mask = problem
    output, weights = attention(query, key, value, mask)
    sums = weights.sum(-1)
    assert (weights >= 0).all() and (((sums - 1).abs() < 1e-12) | (sums == 0)).all()
    looks = sums > 0
    low, high = value.amin(-2)[:, :, None], value.amax(-2)[:, :, None]
    inside = (output >= low - 1e-12) & (output <= high + 1e-12)
    assert inside[looks].all() and (output[~looks] == 0).all()
    if mask is not None: assert (weights[~mask.expand_as(weights)] == 0).all()


@some
@given(problems(), st.sampled_from([1e3, 1e6, -1e30]))
def test_forbidden_keys_and_values_do_not_matter(problem, rubbish):
    query, key, value, weights, mask = problem
    K = key.shape[-2]
    allowed = torch.arange(K) % 2 == 0                             # the same for all queries
    spoiled = [torch.where(allowed[:, None], t, rubbish) for t in (key, value)]
    before = with_gradients(lambda q, k, v: attention(q, k, v, allowed)[0], query, key, value, weights)
    after = with_gradients(lambda q, k, v: attention(q, k, v, allowed)[0], query, *spoiled, weights)
    for a, b in zip(before[:2], after[:2]): torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    assert (after[2][:, :, ~allowed] == 0).all() and (after[3][:, :, ~allowed] == 0).all(), "and they get no gradient"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_attention_keeps_the_dtype_and_stays_finite(dtype):
    x = randn(0, 2, 3, 5, 8, dtype=dtype)
    mask = padding_mask(torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]))
    output, weights = attention(8 * x, x, x, mask)
    assert output.dtype == weights.dtype == dtype and output.isfinite().all() and weights.isfinite().all()
    assert (weights[1] == 0).all() and (output[1] == 0).all() and (weights[0, ..., 2:] == 0).all()


@pytest.mark.parametrize("mask", [torch.tensor([1, 1, 0]), torch.tensor([0.0, 0.0, -math.inf])])
def test_a_mask_that_is_not_boolean_is_refused(mask):
    with pytest.raises(TypeError, match=r"give mask.bool\(\)"): attention(*randn(0, 3, 2, 3, 4), mask)


@some
@given(st.integers(1, 8), st.integers(1, 4), seeds)
def test_causal_is_each_beginning_alone_and_padding_the_text_alone(T, extra, seed):
    x = randn(seed, 1, 2, T, 4)
    whole = attention(x, x, x, causal_mask(T))[0]
    for t in range(1, T + 1):
        part = x[:, :, :t]
        torch.testing.assert_close(whole[:, :, t - 1:t], attention(part[:, :, -1:], part, part)[0], atol=1e-12, rtol=1e-10)
    given_mask = torch.tensor([[1] * T + [0] * extra])
    longer = torch.cat([x, randn(seed + 1, 1, 2, extra, 4)], 2)
    torch.testing.assert_close(attention(longer, longer, longer, padding_mask(given_mask))[0][:, :, :T], attention(x, x, x)[0], atol=1e-12, rtol=1e-10)
    assert padding_mask(given_mask).shape == (1, 1, 1, T + extra) and padding_mask(given_mask).dtype == causal_mask(T).dtype == torch.bool


# ---- heads

@some
@given(size, size, size, size, seeds)
def test_heads_are_slices_of_the_width(B, T, H, d, seed):
    x = randn(seed, B, T, H * d)
    heads = split_heads(x, H)
    assert heads.shape == (B, H, T, d) and torch.equal(join_heads(heads), x)
    for h in range(H): assert torch.equal(heads[:, h], x[..., h * d:(h + 1) * d])


def test_multi_head_equals_torch_multihead_attention():
    B, T, D, H = 3, 5, 12, 4
    torch.manual_seed(0)
    reference = torch.nn.MultiheadAttention(D, H, batch_first=True, dtype=torch.float64)
    torch.nn.init.normal_(reference.in_proj_bias)
    x, given_mask = randn(1, B, T, D), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    q, k, v = (split_heads(part, H) for part in (x @ reference.in_proj_weight.T + reference.in_proj_bias).chunk(3, -1))
    output, weights = attention(q, k, v, padding_mask(given_mask) & causal_mask(T))
    theirs, their_weights = reference(x, x, x, key_padding_mask=given_mask == 0, attn_mask=~causal_mask(T), average_attn_weights=False)
    torch.testing.assert_close(reference.out_proj(join_heads(output)), theirs, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(weights, their_weights, atol=1e-10, rtol=1e-10)


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no multiple of 3"): split_heads(torch.ones(1, 2, 8), 3)
    for wrong in (lambda: sinusoidal(3, 5), lambda: rotate(torch.ones(3, 5), torch.arange(3))):
        with pytest.raises(ValueError, match="must be even"): wrong()


# ---- order and positions

@some
@given(st.integers(2, 7), seeds)
def test_attention_forgets_order_and_positions_bring_it_back(T, seed):
    x, order = randn(seed, T, 8), torch.roll(torch.arange(T), 1)
    torch.testing.assert_close(attention(x[order], x[order], x[order])[0], attention(x, x, x)[0][order], atol=1e-12, rtol=1e-10)
    positions = torch.arange(T)
    turned = [attention(rotate(y, positions), rotate(y, positions), y)[0].mean(0) for y in (x, x[order])]
    added = [attention(y, y, y)[0].mean(0) for y in (x + sinusoidal(T, 8), x[order] + sinusoidal(T, 8))]
    assert not torch.allclose(*added, atol=1e-6, rtol=0)
    if T > 2: assert not torch.allclose(*turned, atol=1e-6, rtol=0)      # two tokens turned round keep the sizes of their distances, not the signs


@some
@given(st.integers(1, 40), st.integers(1, 16))
def test_sinusoidal_is_the_formula(T, pairs):
    table = sinusoidal(T, 2 * pairs)
    assert table.shape == (T, 2 * pairs) and table.dtype == torch.float32
    for t in {0, T // 2, T - 1}:
        for i in range(pairs):
            angle = t / 10000 ** (2 * i / (2 * pairs))
            assert abs(table[t, 2 * i] - math.sin(angle)) < 1e-6 and abs(table[t, 2 * i + 1] - math.cos(angle)) < 1e-6


@some
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10_000), seeds)
def test_rotary_scores_depend_on_distance_alone(T, pairs, shift, seed):
    q, k = randn(seed, 2, 1, 3, T, 2 * pairs)
    t = torch.arange(T)
    scores = lambda positions: rotate(q, positions) @ rotate(k, positions).transpose(-2, -1)
    torch.testing.assert_close(scores(t + shift), scores(t), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(rotate(rotate(q, t), t), rotate(q, 2 * t), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(rotate(rotate(q, t), -t), q, atol=1e-10, rtol=1e-10)


def test_rotary_equals_the_library_with_its_width_reordered():
    from transformers import ModernBertConfig
    from transformers.models.modernbert import modeling_modernbert as library
    d, T = 8, 6
    x = randn(0, 1, 2, T, d, dtype=torch.float32)
    angles = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(0, d, 2) / d)           # (T, d/2)
    cos, sin = (torch.cat([part, part], -1)[None] for part in (angles.cos(), angles.sin()))
    halves = torch.cat([torch.arange(0, d, 2), torch.arange(1, d, 2)])                     # neighbours (2i, 2i+1) → (i, i + d/2)
    theirs, _ = library.apply_rotary_pos_emb(x[..., halves], x[..., halves], cos, sin)
    torch.testing.assert_close(rotate(x, torch.arange(T))[..., halves], theirs, atol=1e-6, rtol=1e-6)


# ---- the table of equalities

@some
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), st.floats(1e-9, 1e3))
def test_checks_pass_and_fail_at_the_tolerance(numbers, apart):
    checks, moved = Checks(), [numbers[0] + apart, *numbers[1:]]
    real = abs(moved[0] - numbers[0])
    checks("moved", moved, numbers, real)
    assert checks.rows["moved"] == (1, real, real, False)
    if real > 0:
        with pytest.raises(AssertionError, match="moved: largest difference"): checks("moved", moved, numbers, real / 2)
        assert checks.rows["moved"][0] == 1, "what failed is not in the table"


def test_checks_table():
    checks = Checks()
    for apart in (1e-4, 3e-4, 2e-4): checks("arrays", np.array([1.0 + apart, 2.0]), np.array([1.0, 2.0]), 1e-3)
    checks("a longer name", [torch.ones(2, requires_grad=True), np.ones((2, 3))], [torch.ones(2), 4 * torch.ones(2, 3)], 0.8, relative=True)
    header, first, second = str(checks).splitlines()
    assert first.split() == ["arrays", "3", "3.0e-04", "1e-03"] and second.split()[-4:] == ["1", "7.5e-01", "8e-01", "rel"]
    assert len({line.index(word) + len(word) for line, word in ((header, "difference"), (first, "3.0e-04"), (second, "7.5e-01"))}) == 1, "aligned"


@pytest.mark.parametrize("ours, reference, told", [
    (torch.ones(2, 1), torch.ones(1, 2), "shape"), (1.0, [1.0], "shape"), (math.nan, math.nan, "not a number"), (math.inf, 1.0, "largest difference"),
    (torch.ones(0), torch.ones(0), "nothing to compare"), ([torch.ones(2)], [torch.ones(2)] * 2, "1 things compared with 2")])
def test_checks_refuse_what_is_no_comparison(ours, reference, told):
    with pytest.raises(AssertionError, match=told): Checks()("claim", ours, reference, 1e9)


# ---- a real model

@pytest.fixture(scope="module")
def minilm():
    encoder = load_encoder("minilm")
    encoder.set_attn_implementation("eager")
    return load_tokenizer("minilm"), encoder


@few
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_ours_equals_the_attention_of_minilm(minilm, texts):
    tokenizer, encoder = minilm
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = encoder(**batch, output_attentions=True, output_hidden_states=True)
        for layer, x, wanted in zip(encoder.encoder.layer, found.hidden_states, found.attentions):
            part = layer.attention.self
            q, k, v = (split_heads(project(x), 12) for project in (part.query, part.key, part.value))
            torch.testing.assert_close(attention(q, k, v, padding_mask(batch["attention_mask"]))[1], wanted, atol=2e-6, rtol=0)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)
        self.close()
    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_data(self, data): self.texts.append(data)


@few
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8), min_size=1, max_size=4))
def test_text_in_the_picture_is_escaped_and_never_a_formula(tokens):
    tokens = [*tokens, "<script>", "$\\frac$", "$", '"', "'", "&lt;"]
    page = Page(attention_html(tokens, torch.eye(len(tokens)), "<b> $\\frac$"))
    assert [tag for tag, _ in page.tags] == ["img"] and sorted(page.tags[0][1]) == ["alt", "src"] and not page.texts
    assert all(f"{token} at {token}" in page.tags[0][1]["alt"] for token in ("<script>", '"', "&lt;"))
    assert base64.b64decode(page.tags[0][1]["src"].split(",")[1]).startswith(b"\x89PNG")


def test_look_and_plot(minilm):
    from matplotlib.figure import Figure
    tokens, weights = look("A <b>bold</b> soup.", *minilm)
    assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]" and weights.shape == (6, 12, len(tokens), len(tokens))
    torch.testing.assert_close(weights.sum(-1), torch.ones(6, 12, len(tokens)), atol=1e-5, rtol=0)
    assert len(look("word " * 900, *minilm)[0]) == 32 and look("", *minilm)[0] == ["[CLS]", "[SEP]"]
    axes = Figure().subplots()
    picture = plot_attention(axes, tokens, weights[0, 0], "title")
    assert [label.get_text() for label in axes.get_xticklabels()] == [label.get_text() for label in axes.get_yticklabels()] == tokens
    assert picture.get_array().shape == (len(tokens), len(tokens))


def test_a_fused_encoder_has_no_weights_to_look_at():
    with pytest.raises(ValueError, match="set_attn_implementation"): look("soup", load_tokenizer("minilm"), load_encoder("minilm"))


def test_the_view_follows_its_controls(minilm):
    pytest.importorskip("ipywidgets")
    box, layer, head, told, picture = explore(*minilm, text="<img src=x onerror=alert(1)>").children
    assert (layer.max, head.max) == (5, 11) and Page(told.value).tags == []
    seen = {picture.value}
    for control, value in ((layer, 3), (head, 11), (box, "another sentence")):
        control.value = value
        seen.add(picture.value)
    assert len(seen) == 4 and "layer 3, head 11" in picture.value and "another sentence" in told.value


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_look_at_other_families(checkpoint, family):
    folder = str(checkpoint(family))
    tokenizer, encoder = load_tokenizer(folder), load_encoder(folder)
    encoder.set_attn_implementation("eager")
    tokens, weights = look("the soup was good", tokenizer, encoder)
    assert weights.shape == (2, 4, len(tokens), len(tokens))
    pytest.importorskip("ipywidgets")
    told = Page(explore(tokenizer, encoder, text="the soup").children[3].value)
    assert told.tags == [] and tokens[0] in "".join(told.texts), "RoBERTa's <s> is a token here and no tag"
