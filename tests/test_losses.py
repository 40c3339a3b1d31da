"""The losses on shapes and values that hypothesis looks for: against torch, autograd and finite differences; what was decided; refusals."""
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutorial_clf.losses import (LossError, cross_entropy, cross_entropy_grad, entropy, focal_loss, focal_loss_grad, kl_divergence,
                                 log_softmax, numerical_gradient, softmax, softmax_jacobian)

INF, NAN = math.inf, math.nan
HALF = (torch.float16, torch.bfloat16)


def examples(n): return settings(max_examples=n, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck))      # new ones at each run


def off(ours, reference):
    "Size of the difference of two whole vectors, relative to the reference (which may be zero)."
    size = reference.norm().item()
    return (ours - reference).norm().item() / size if size else ours.norm().item()


def gradient(loss, z, *args, **more):
    leaf = z.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, *args, **more), leaf)[0]


def by_torch(z, labels, **more):
    "torch's loss; it wants the classes second, so the leading dimensions become one."
    C = z.shape[-1]
    return F.cross_entropy(z.reshape(-1, C), labels.reshape(-1, C) if labels.is_floating_point() else labels.reshape(-1), **more)


@st.composite
def batches(draw, soft=None, reach=3.0, smooth=True):
    "Logits (..., C) within ±reach, labels or soft targets, and the settings, each there or not; at least one row counts."
    leading, C = draw(st.sampled_from([(), (1,), (3,), (7,), (2, 3), (2, 1, 2)])), draw(st.integers(1, 7))
    soft = draw(st.booleans()) if soft is None else soft
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    uniform = lambda *shape: torch.rand(shape, generator=g, dtype=torch.float64)
    z, more = reach * (2 * uniform(*leading, C) - 1), {}
    if draw(st.booleans()): more["weight"] = 0.1 + 3 * uniform(C)
    if smooth and draw(st.booleans()): more["label_smoothing"] = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    if soft:
        labels = softmax(3 * uniform(*leading, C))
        if draw(st.booleans()): labels = labels * (1 + uniform(*leading, 1))              # rows that do not sum to one
        return z, labels, more
    labels = (uniform(*leading) * C).long()
    ignore = draw(st.sampled_from([None, -100, -1, 0, C - 1]))
    if ignore is not None:
        if ignore != -100: more["ignore_index"] = ignore
        labels = labels.where(uniform(*leading) < 0.7, ignore)
        if (labels == ignore).all():
            if C == 1 and ignore == 0: more.pop("ignore_index")
            else: labels = labels.where(torch.arange(labels.numel()).reshape(labels.shape) > 0, (ignore + 1) % C if ignore >= 0 else 0)
    return z, labels, more


# ---- against torch, autograd and finite differences

@examples(250)
@given(batches())
def test_loss_and_gradient_equal_torch(batch):
    z, labels, more = batch
    theirs, grad = by_torch(z, labels, **more), cross_entropy_grad(z, labels, **more)
    assert off(cross_entropy(z, labels, **more), theirs) <= 1e-12
    assert off(grad, gradient(by_torch, z, labels, **more)) <= 1e-12 and off(gradient(cross_entropy, z, labels, **more), grad) <= 1e-12
    assert grad.shape == z.shape and grad.sum(-1).abs().max() < 1e-12 * max(1.0, grad.abs().max().item())


@examples(120)
@given(batches())
def test_gradient_equals_finite_differences(batch):
    z, labels, more = batch
    slopes = numerical_gradient(lambda z: cross_entropy(z, labels, **more), z)
    assert off(cross_entropy_grad(z, labels, **more), slopes) <= 1e-6


@examples(120)
@given(batches(soft=False, smooth=False), st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]))
def test_focal_loss(batch, gamma):
    z, labels, more = batch
    grad = focal_loss_grad(z, labels, gamma, **more)
    assert off(grad, gradient(focal_loss, z, labels, gamma, **more)) <= 1e-12
    assert off(grad, numerical_gradient(lambda z: focal_loss(z, labels, gamma, **more), z)) <= 1e-6
    if gamma == 0:
        assert off(focal_loss(z, labels, 0.0, **more), cross_entropy(z, labels, **more)) <= 1e-12
        assert off(grad, cross_entropy_grad(z, labels, **more)) <= 1e-12
    else: assert focal_loss(z, labels, gamma, **more) <= cross_entropy(z, labels, **more) + 1e-12


def test_focal_loss_by_hand():
    "(1 - p)^2 times the surprise, weights 1 and 3."
    z, w = torch.tensor([[2.0, 1.0, 0.0], [0.5, -1.0, 3.0]], dtype=torch.float64), torch.tensor([1.0, 3.0, 1.0], dtype=torch.float64)
    p = z.softmax(-1)[[0, 1], [0, 1]]
    assert off(focal_loss(z, torch.tensor([0, 1]), weight=w), (w[:2] * (1 - p) ** 2 * -p.log()).sum() / 4) < 1e-14


def test_focal_loss_where_the_model_is_sure():
    for dtype in (torch.float64, torch.float32, *HALF):
        for z in ([[1e4, -1e4]], [[-1e4, 1e4]], [[40.0, 0.0]], [[5.0]]):
            z = torch.tensor(z, dtype=dtype)
            for gamma in (0.0, 0.5, 1.0, 2.0):
                results = focal_loss(z, torch.tensor([0]), gamma), focal_loss_grad(z, torch.tensor([0]), gamma), gradient(focal_loss, z, torch.tensor([0]), gamma)
                assert all(r.isfinite().all() and r.dtype == dtype for r in results), (z, gamma)
    wrong = torch.tensor([[0.0, -40.0]], dtype=torch.float64), torch.tensor([1])     # sure and wrong: as cross-entropy
    assert off(focal_loss_grad(*wrong), cross_entropy_grad(*wrong)) < 1e-12


@examples(100)
@given(st.integers(1, 6), st.integers(0, 2**31), st.sampled_from([1.0, 10.0, 1e4]))
def test_softmax_and_jacobian(C, seed, reach):
    z = reach * torch.randn(2, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert (log_softmax(z) - z.log_softmax(-1)).abs().max() <= 1e-12 * max(1.0, reach) and off(softmax(z), z.softmax(-1)) <= 1e-11
    theirs = torch.autograd.functional.jacobian(lambda row: row.softmax(-1), z[0])
    assert off(softmax_jacobian(softmax(z))[0] + torch.eye(C), theirs + torch.eye(C)) <= 1e-11
    assert softmax(z + 3.25).sub(softmax(z)).abs().max() <= 1e-11


@examples(60)
@given(batches(soft=True, smooth=False))
def test_gradient_for_the_soft_targets_equals_torch(batch):
    z, labels, more = batch
    leaf = labels.clone().requires_grad_()
    ours, theirs = (torch.autograd.grad(loss(z, leaf, **more), leaf)[0] for loss in (cross_entropy, by_torch))
    assert off(ours, theirs) <= 1e-12
    leaf = F.one_hot(labels.argmax(-1), z.shape[-1]).double().requires_grad_()          # also where a target is zero
    ours, theirs = (torch.autograd.grad(loss(z, leaf, **more), leaf)[0] for loss in (cross_entropy, by_torch))
    assert off(ours, theirs) <= 1e-12


# ---- what a loss must not depend on

@examples(100)
@given(batches(), st.integers(0, 2**31))
def test_order_of_classes_and_rows_shift_and_doubling(batch, seed):
    z, labels, more = batch
    loss, g = cross_entropy(z, labels, **more), torch.Generator().manual_seed(seed)
    C, soft = z.shape[-1], labels.is_floating_point()
    assert off(cross_entropy(z + 5.5, labels, **more), loss) <= 1e-12
    assert off(cross_entropy(torch.stack([z, z]), torch.stack([labels, labels]), **more), loss) <= 1e-12
    turn = torch.randperm(C, generator=g)                                    # new class i is old class turn[i]
    ignored = more.get("ignore_index", -100)
    new = labels[..., turn] if soft else turn.argsort()[labels.clamp(0, C - 1)].where((labels >= 0) & (labels < C) & (labels != ignored), -100)
    turned = {key: value[turn] if key == "weight" else value for key, value in more.items() if key != "ignore_index"}
    assert off(cross_entropy(z[..., turn], new, **turned), loss) <= 1e-12


@examples(60)
@given(batches(soft=False, smooth=False))
def test_one_hot_targets_equal_labels(batch):
    z, labels, more = batch
    if "weight" in more or (labels == more.get("ignore_index", -100)).any(): return     # another divisor
    assert off(cross_entropy(z, F.one_hot(labels, z.shape[-1]).double()), cross_entropy(z, labels)) <= 1e-12


@examples(60)
@given(batches(soft=True, smooth=False))
def test_cross_entropy_is_entropy_and_divergence(batch):
    z, _, _ = batch
    y = softmax(z.flip(-1) * 1.5)
    assert off(cross_entropy(z, y), (entropy(y) + kl_divergence(y, softmax(z))).mean()) <= 1e-12
    assert (kl_divergence(y, softmax(z)) >= -1e-15).all() and (entropy(y) <= math.log(z.shape[-1]) + 1e-12).all()
    assert off(kl_divergence(y, softmax(z)), F.kl_div(log_softmax(z), y, reduction="none").sum(-1)) <= 1e-9
    assert (entropy(y) - torch.distributions.Categorical(probs=y).entropy()).abs().max() <= 1e-12


def test_entropy_and_divergence_at_zero():
    sure, even = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    assert entropy(sure) == 0 and kl_divergence(sure, sure) == 0
    assert kl_divergence(sure, even).item() == pytest.approx(math.log(2)) and kl_divergence(even, sure) == INF


# ---- the numbers that break a naive loss

@examples(200)
@given(st.sampled_from([torch.float64, torch.float32, *HALF]), st.lists(st.lists(st.sampled_from([1e4, -1e4, 0.0, 3.0, -7.5, 60.0, -INF]), min_size=4, max_size=4),
                                                                        min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 3), st.sampled_from([0.0, 0.1]))
def test_hard_logits(dtype, rows, C, label, smoothing):
    z = torch.tensor(rows, dtype=dtype)[:, :C]
    z[:, 0] = z[:, 0].where(z[:, 0] > -INF, 1.0)                             # each row has a class that is not masked
    labels = torch.full((len(z),), label % C)
    ours, grad, exact = cross_entropy(z, labels, label_smoothing=smoothing), cross_entropy_grad(z, labels, label_smoothing=smoothing), z.double()
    theirs = F.cross_entropy(exact, labels, label_smoothing=smoothing)
    assert ours.dtype == grad.dtype == dtype and not ours.isnan() and grad.isfinite().all()
    if theirs.isinf(): assert ours == INF
    else: assert abs(ours.double() - theirs) <= 4 * torch.finfo(dtype).eps * max(1.0, theirs.item())
    reference = gradient(F.cross_entropy, exact, labels, label_smoothing=smoothing)
    assert (grad.double() - reference).abs().max() <= 4 * torch.finfo(dtype).eps
    assert (gradient(cross_entropy, z, labels, label_smoothing=smoothing).double() - reference).abs().max() <= 4 * torch.finfo(dtype).eps
    if dtype != torch.float64:                                               # and log_softmax in its own type
        assert torch.allclose(log_softmax(z).double(), exact.log_softmax(-1), rtol=4 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_naive_overflows_and_stable_does_not(dtype):
    def naive(z, y): return -(y * (z.exp() / z.exp().sum(-1)).log()).sum(-1)
    for row, label in (([1e4, 0, -1e4], 0), ([1e4, 0, -1e4], 2), ([-1e4] * 3, 1), ([1e4], 0), ([2.0, 1.0, -INF], 0)):
        z = torch.tensor(row, dtype=dtype)
        assert naive(z, F.one_hot(torch.tensor(label), len(row)).to(dtype)).isnan()
        assert cross_entropy(z, torch.tensor(label)).isfinite() and log_softmax(z)[label].isfinite()


@pytest.mark.parametrize("dtype", HALF)
def test_16_bit_sums_do_not_overflow(dtype):
    z = torch.tensor([[1e4, -1e4]] * 100, dtype=dtype)
    assert cross_entropy(z, torch.ones(100, dtype=torch.long)) == 2 * z[0, 0]
    many = torch.zeros(70_000, 2, dtype=dtype)                               # more rows than float16 can count
    assert abs(cross_entropy(many, torch.zeros(70_000, dtype=torch.long)).item() - math.log(2)) < torch.finfo(dtype).eps
    assert abs(cross_entropy(many, torch.full((70_000, 2), 0.5, dtype=dtype)).item() - math.log(2)) < torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
def test_one_class_has_no_loss(dtype):
    z = torch.tensor([[1e4], [-3.0]], dtype=dtype)
    for labels in (torch.tensor([0, 0]), torch.ones(2, 1, dtype=dtype)):
        assert cross_entropy(z, labels, label_smoothing=0.1) == 0 and (cross_entropy_grad(z, labels, label_smoothing=0.1) == 0).all()


# ---- what was decided

@pytest.mark.parametrize("z, labels, more", [
    (torch.randn(3, 4), torch.full((3,), -100), {}),
    (torch.randn(3, 4), torch.full((3,), -100), {"label_smoothing": 0.1, "weight": torch.rand(4)}),
    (torch.randn(3, 4), torch.full((3,), 2), {"ignore_index": 2}),
    (torch.randn(3, 4), torch.full((3,), 1), {"weight": torch.tensor([1.0, 0, 1, 1])}),
    (torch.randn(3, 4), torch.full((3,), 1), {"weight": torch.tensor([1.0, 0, 1, 1]), "label_smoothing": 0.1}),
    (torch.full((3, 4), NAN), torch.full((3,), -100), {}),
    (torch.full((3, 4), -INF), torch.full((3,), -100), {"label_smoothing": 0.1}),
    (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), {}),
    (torch.zeros(0, 4), torch.zeros(0, 4), {}),
], ids=["all ignored", "all ignored, smoothed", "ignored label", "weights of zero", "weights of zero, smoothed", "NaN", "-inf", "no rows", "no soft rows"])
def test_where_nothing_counts_loss_and_gradient_are_zero(z, labels, more):
    losses = [(cross_entropy, cross_entropy_grad)] + [(focal_loss, focal_loss_grad)] * (not labels.is_floating_point() and "label_smoothing" not in more)
    for loss, grad in losses:
        assert loss(z, labels, **more) == 0 and torch.equal(grad(z, labels, **more), torch.zeros_like(z))
        assert torch.equal(gradient(loss, z, labels, **more), torch.zeros_like(z))       # and training may go on
    assert not by_torch(z, labels, **more).isfinite(), "torch has changed: chapter 05 says NaN or infinity"


def test_smoothed_target_at_a_masked_class_is_infinite():
    z, labels = torch.tensor([[2.0, 1.0, -INF], [0.0, 1.0, 2.0]], dtype=torch.float64), torch.tensor([0, 1])
    assert cross_entropy(z, labels, label_smoothing=0.1) == INF == F.cross_entropy(z, labels, label_smoothing=0.1)
    grad = cross_entropy_grad(z, labels, label_smoothing=0.1)
    assert grad.isfinite().all() and off(grad, gradient(F.cross_entropy, z, labels, label_smoothing=0.1)) < 1e-12
    assert off(gradient(cross_entropy, z, labels, label_smoothing=0.1), grad) < 1e-12
    assert cross_entropy(z, torch.tensor([2, 0])) == INF and cross_entropy_grad(z, torch.tensor([2, 0])).isfinite().all()
    assert focal_loss(z, torch.tensor([2, 0])) == INF and focal_loss_grad(z, torch.tensor([2, 0])).isfinite().all()


def test_target_of_zero_at_a_masked_class_adds_nothing():
    masked, plain = torch.tensor([[2.0, 1.0, -INF]], dtype=torch.float64), torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    soft = torch.tensor([[0.9, 0.1, 0.0]], dtype=torch.float64)
    assert F.cross_entropy(masked, soft).isnan(), "torch has changed: chapter 05 says NaN"
    assert off(cross_entropy(masked, soft), cross_entropy(plain, soft[:, :2])) < 1e-12
    expected = torch.cat([cross_entropy_grad(plain, soft[:, :2]), torch.zeros(1, 1)], -1)
    assert off(cross_entropy_grad(masked, soft), expected) < 1e-12 and off(gradient(cross_entropy, masked, soft), expected) < 1e-12
    # a masked class whose weight is zero, smoothed; a row of that class beside another
    w = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    smoothed = cross_entropy(masked, torch.tensor([0]), weight=w, label_smoothing=0.3)
    log_p = plain.log_softmax(-1)[0]
    assert smoothed.item() == pytest.approx(-(0.8 * log_p[0] + 0.1 * log_p[1]).item(), abs=1e-12)
    both = masked.repeat(2, 1), torch.tensor([0, 2])
    assert off(cross_entropy(*both, weight=w), cross_entropy(plain, torch.tensor([0]))) < 1e-12
    assert off(focal_loss(*both, weight=w), focal_loss(plain, torch.tensor([0]))) < 1e-12
    assert focal_loss_grad(*both, weight=w).isfinite().all()


def test_ignored_rows_may_hold_anything():
    clean = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
    for rubbish in ([NAN] * 3, [INF, 0.0, 0.0], [-INF] * 3):
        z, labels = torch.cat([clean, torch.tensor([rubbish], dtype=torch.float64)]), torch.tensor([0, -100])
        for loss, grad, more in ((cross_entropy, cross_entropy_grad, {}), (cross_entropy, cross_entropy_grad, {"label_smoothing": 0.1}), (focal_loss, focal_loss_grad, {})):
            expected = torch.cat([grad(clean, labels[:1], **more), torch.zeros(1, 3)])
            assert off(loss(z, labels, **more), loss(clean, labels[:1], **more)) < 1e-12
            assert off(grad(z, labels, **more), expected) < 1e-12 and off(gradient(loss, z, labels, **more), expected) < 1e-12


def test_counted_rows_without_a_distribution_are_nan():
    for row in ([-INF] * 3, [NAN, 0.0, 0.0], [INF, 0.0, 0.0]):
        z = torch.tensor([row])
        for labels in (torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.0]])):
            assert cross_entropy(z, labels).isnan() and cross_entropy_grad(z, labels).isnan().any()


# ---- arguments

@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_whole_number_type(dtype):
    z, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 2])
    assert cross_entropy(z, labels.to(dtype)) == cross_entropy(z, labels)


def test_half_precision_weights_and_results():
    for dtype in HALF:
        z, w = torch.randn(4, 3, dtype=dtype), torch.rand(3)
        assert cross_entropy(z, torch.tensor([0, 1, 2, 0]), weight=w).dtype == dtype == cross_entropy_grad(z, torch.tensor([0, 1, 2, 0]), weight=w).dtype


TWO = torch.zeros(2, 3)
@pytest.mark.parametrize("args, more, message", [
    ((TWO, torch.tensor([0, 3])), {}, "label 3 is none of 0 to 2"),
    ((TWO, torch.tensor([0, -1])), {}, "label -1 is none of 0 to 2, nor ignore_index = -100"),
    ((TWO, torch.tensor([0])), {}, r"need labels of shape \(2,\)"),
    ((TWO, torch.zeros(2, 3, dtype=torch.long)), {}, r"need labels of shape \(2,\)"),
    ((TWO, torch.zeros(2)), {}, "shape of the logits"),
    ((TWO, torch.tensor([0, 1])), {"weight": torch.ones(2)}, r"3 classes need \(3,\)"),
    ((TWO.long(), torch.tensor([0, 1])), {}, "must be floats"),
    ((torch.zeros(2, 0), torch.tensor([0, 1])), {}, "at least one class"),
    ((torch.tensor(1.0), torch.tensor(0)), {}, "at least one class"),
    ((TWO, torch.tensor([0, 1])), {"label_smoothing": 1.5}, "between 0 and 1"),
    ((TWO, torch.tensor([0, 1])), {"label_smoothing": NAN}, "between 0 and 1"),
    ((TWO, torch.zeros(2, 3)), {"ignore_index": 0}, "no ignore_index"),
])
def test_refusals(args, more, message):
    for function in (cross_entropy, cross_entropy_grad):
        with pytest.raises(LossError, match=message): function(*args, **more)


def test_refusals_of_the_focal_loss():
    for function in (focal_loss, focal_loss_grad):
        with pytest.raises(LossError, match="gamma = -1"): function(TWO, torch.tensor([0, 1]), gamma=-1)
        with pytest.raises(LossError, match="not soft targets"): function(TWO, torch.zeros(2, 3))
        with pytest.raises(LossError, match="label 3"): function(TWO, torch.tensor([0, 3]))
