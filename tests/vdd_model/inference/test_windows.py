"""Windows, tiles, blending weights, and noise that does not notice the cuts."""
import pytest
import torch

from vdd_model.inference.tiles import Box, Span, Tiling, blend, ramp, spans
from vdd_model.inference.windows import fade_in, frame_noise, window_steps


@pytest.mark.parametrize("size, length, overlap, multiple", [
    (100, 100, 10, 1), (7, 100, 10, 1), (101, 40, 13, 1), (960, 256, 64, 16), (48, 32, 16, 16), (1000, 24, 8, 4), (17, 16, 15, 1)])
def test_spans_cover_with_at_least_the_overlap(size, length, overlap, multiple):
    pieces = spans(size, length, overlap, multiple)
    assert pieces[0].start == pieces[0].lead == pieces[-1].trail == 0 and pieces[-1].stop == size
    for a, b in zip(pieces, pieces[1:]):
        assert a.stop - b.start == a.trail == b.lead >= overlap
        assert b.start % multiple == 0 and b.start > a.start
    lengths = {p.stop - p.start for p in pieces}
    assert len(lengths) == 1 and lengths.pop() <= length
    rows, columns = spans(2160, 768, 128, 16), spans(3840, 768, 128, 16)               # and share no more than they must
    assert (len(rows), rows[0].stop) == (4, 640) and (len(columns), columns[0].stop) == (6, 752)


def test_impossible_cuts_are_refused():
    pytest.raises(ValueError, spans, 100, 16, 16).match("overlap")
    for window, overlap in ((0, 0), (4, 3), (4, -1)):
        pytest.raises(ValueError, steps, 9, window, overlap).match("overlap")


def test_blending_pieces_of_one_tensor_gives_it_back():
    x = torch.randn(1, 2, 9, 40, 52)
    pieces = Tiling(24, 8, 4, divisor=4).boxes((9, 40, 52), time=True)
    assert len(pieces) > 8
    torch.testing.assert_close(blend(pieces, lambda box: box.of(x)), x, rtol=0, atol=1e-5)
    assert blend(Tiling(8).boxes((3, 4, 5)), lambda box: x) is x                           # one box


def test_boxes_and_their_weights():
    for n in (1, 2, 5, 64):
        torch.testing.assert_close(ramp(n) + ramp(n).flip(0), torch.ones(n))
    assert (Span(0, 10, 6, 6).weight() > 0).all()
    box = Box(Span(0, 3), Span(16, 32, 8, 4), Span(32, 48, 0, 8))
    assert box.shrunk(4) == Box(Span(0, 3), Span(4, 8, 2, 1), Span(8, 12, 0, 2))
    assert box.shrunk(4).weight().shape == (3, 4, 4)


def steps(total, window, overlap, first=0):
    return list(window_steps(lambda count: min(count, total), window, overlap, first))


@pytest.mark.parametrize("total, windows", [
    (0, []), (1, [(0, 1)]), (2, [(0, 2)]), (16, [(0, 16)]), (17, [(0, 16), (1, 17)]), (28, [(0, 16), (12, 28)]),
    (29, [(0, 16), (12, 28), (13, 29)])])
def test_windows(total, windows):
    assert [(step.window.start, step.window.stop) for step in steps(total, 16, 4)] == windows


@pytest.mark.parametrize("window, overlap", [(1, 0), (2, 1), (8, 4), (16, 0), (16, 5)])
def test_every_frame_is_read_and_ready_once_and_steps_are_the_same_from_any_of_them_on(window, overlap):
    for total in range(1, 70):
        found = steps(total, window, overlap)
        for ranges in ([step.read for step in found], [step.ready for step in found]):
            assert [i for part in ranges for i in part] == list(range(total))
        for before, step in zip([None, *found], found):
            assert len(step.window) == min(window, total) and step.last is (step is found[-1])
            assert step.read.stop >= step.window.stop and set(step.ready) <= set(step.window)
            if before:
                assert len(step.shared) == overlap and step.shared.start == step.ready.start
                assert set(step.shared) <= set(before.window) & set(step.window)
        assert not found[0].shared and all(steps(total, window, overlap, first) == found[first:] for first in range(len(found)))


def test_no_more_is_read_than_a_window_and_one_frame():
    asked = []
    for step in window_steps(lambda count: asked.append(count) or min(count, 40), 16, 4):
        assert asked[-1] == step.ready.start + 17


def test_noise_is_standard_normal_differs_by_seed_frame_and_step_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    noise = frame_noise(0, range(16), 4, 64, 64)
    assert torch.equal(state, torch.get_rng_state())
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01
    assert (torch.corrcoef(noise[0].transpose(0, 1).flatten(1)) - torch.eye(16)).abs().max() < 0.05
    for seed, step in ((1, 0), (0, 1), (-1, 0), (2**63, 0)):
        assert not torch.allclose(noise[:, :, 1:2], frame_noise(seed, [1], 4, 64, 64, step=step))


def test_a_clip_put_together_from_windows_is_the_clip_and_fades_where_they_meet():
    clip = torch.randn(1, 2, 11, 3, 4, generator=torch.Generator().manual_seed(0))
    for added in (0.0, 1.0):                            # by every window once more than by the one before
        parts, part, before = [], None, range(0)
        for k, step in enumerate(steps(11, 4, 2)):
            window = clip[:, :, step.window.start:step.window.stop] + k * added
            part, before = fade_in(window, step, part, before), step.window
            parts.append(part[:, :, step.ready.start - before.start:step.ready.stop - before.start])
        rise = (torch.cat(parts, dim=2) - clip)[0, 0, :, 0, 0]
        assert (rise.diff() >= -1e-6).all() and rise[0] == 0 and rise.diff().max() < 0.8 * added + 1e-6      # no jump by a whole window's
        assert rise[-1] == pytest.approx(k * added)
