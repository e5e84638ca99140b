"""DDIM and guidance against the official sampler's traces, and their properties."""
import pytest
import torch
from safetensors.torch import load_file

from vdd_model.config import DiffusionConfig
from vdd_model.diffusion.sampler import ddim, guided
from vdd_model.diffusion.sampler import timesteps as spaced
from vdd_model.diffusion.schedule import Schedule, make_schedule, x0_from_v
from vdd_model.errors import UserError

SCHEDULE = make_schedule(DiffusionConfig())


def toy_model(cond):
    """The golden traces' v-model."""
    return lambda x, t: torch.tanh(0.3 * x) + 0.1 * (t.to(x).view(-1, 1, 1, 1, 1) / 1000) * cond.to(x)


@pytest.fixture(scope="module")
def traces(shared):
    return load_file(shared / "golden/diffusion_traces.safetensors")


@pytest.fixture(scope="module")
def guided_toy(traces):
    return guided(toy_model(traces["ddim_cond"]), toy_model(traces["ddim_uncond"]), 9.0)


def trace(v_model, x, timesteps, **options):
    """x at every step, the start included, and x0 at every step."""
    xs, x0s = [x], []

    def keep(i, t, x, x0):
        xs.append(x)
        x0s.append(x0)

    ddim(v_model, x, SCHEDULE, timesteps, final_x0=False, callback=keep, **options)
    return torch.stack(xs), torch.stack(x0s)


@pytest.mark.parametrize("steps", [50, 10])
def test_vgen_trace_golden(traces, guided_toy, steps):
    timesteps = spaced(steps, spacing="vgen")
    assert timesteps == traces[f"ddim{steps}.t"].tolist()
    xs, x0s = trace(guided_toy, traces["ddim_noise"].double(), timesteps)
    assert (xs - traces[f"ddim{steps}.x_f64"]).abs().max() < 1e-12
    assert (x0s - traces[f"ddim{steps}.x0"]).abs().max() < 3e-6            # stored in float32 only
    xs, _ = trace(guided_toy, traces["ddim_noise"], timesteps)
    official = (traces[f"ddim{steps}.x"] - traces[f"ddim{steps}.x_f64"]).abs().max()
    assert (xs - traces[f"ddim{steps}.x_f64"]).abs().max() <= official     # never further off than the official float32


def test_vgen_trace_golden_eta(traces, guided_toy):
    torch.manual_seed(5)
    xs, _ = trace(guided_toy, traces["ddim_noise"].double(), spaced(10, spacing="vgen"), eta=0.5,
                  step_noise=lambda i: torch.randn(traces["ddim_noise"].shape))
    assert (xs - traces["ddim10_eta0.5_seed5.x"]).abs().max() < 1e-6


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_guidance_rescale_golden(shared, traces, rescale):
    """The official code has rescaled guidance in its other diffusion class, with a schedule of its own."""
    sigmas = load_file(shared / "golden/diffusion_schedules.safetensors")["sr600.reverse_sigmas"]
    theirs = Schedule(1 - sigmas**2)
    x, t = traces["ddim_noise"], traces["gauss_t"]
    v = guided(toy_model(traces["ddim_cond"]), toy_model(traces["ddim_uncond"]), 9.0, rescale)(x, t)
    assert (x0_from_v(theirs, x, t, v) - traces[f"gauss_rescale_{rescale}.x0"]).abs().max() < 1e-6


def test_one_trailing_step_returns_minus_v_whatever_eta():
    x, v = torch.randn(2, 4, 3, 5, 5), torch.randn(2, 4, 3, 5, 5)
    for eta in (0.0, 0.5, 1.0):
        out = ddim(lambda x, t: v, x, SCHEDULE, spaced(1), eta=eta, step_noise=lambda i: torch.randn_like(x))
        assert torch.equal(out, -v)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
def test_trailing_starts_at_the_end_and_stays_finite(steps, eta):
    timesteps = spaced(steps)
    assert timesteps[0] == 999 and len(set(timesteps)) == steps and timesteps == sorted(timesteps, reverse=True)
    x = torch.randn(1, 4, 2, 3, 3)
    x = ddim(lambda x, t: 0.1 * x, x, SCHEDULE, timesteps, eta=eta, step_noise=lambda i: torch.randn_like(x))
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("spacing", ["trailing", "vgen"])
def test_impossible_step_counts_and_eta_without_noise_are_refused(spacing):
    for steps in (0, -1, 1001):
        with pytest.raises(ValueError, match="steps must be 1 to 1000"):
            spaced(steps, spacing=spacing)
    with pytest.raises(ValueError, match="step_noise"):
        ddim(lambda x, t: x, torch.randn(1, 4, 1, 2, 2), SCHEDULE, spaced(4, spacing=spacing), eta=0.5)


def test_vgen_timesteps_are_distinct_and_start_nearly_in_noise(traces):
    """Too few are refused: the only timestep of one step would be 1, and pure noise would pass for the result."""
    assert spaced(30, spacing="vgen") == traces["ddim30.t"].tolist()                     # 31 of them
    for steps in range(4, 1001):
        timesteps = spaced(steps, spacing="vgen")
        assert len(set(timesteps)) == len(timesteps) and max(timesteps) <= 999 and SCHEDULE.alpha_bar[timesteps[0]].sqrt() < 0.2
    for steps in (1, 2, 3):
        with pytest.raises(UserError, match=f"at least 4 steps, not {steps}: .*'trailing'"):
            spaced(steps, spacing="vgen")


def test_guidance_one_never_runs_the_unconditional_branch_and_everywhere_it_never_reads_the_timestep():
    """On a GPU reading it would wait for all that is queued; here it fails."""
    conditional = toy_model(torch.zeros(1))
    assert guided(conditional, None, 1.0) is conditional
    v_model = guided(lambda x, t: torch.ones_like(x), lambda x, t: torch.zeros_like(x), 3.0)
    assert v_model(torch.zeros(1, 2), torch.tensor([5], device="meta")).tolist() == [[3.0, 3.0]]


def test_guidance_interval():
    calls = []

    def unconditional(x, t):
        calls.append(int(t[0]))
        return torch.zeros_like(x)

    v_model = guided(lambda x, t: torch.ones_like(x), unconditional, 3.0, interval=(0.2, 0.6))
    x = torch.randn(1, 4, 1, 2, 2)
    values = {t: float(v_model(x, torch.tensor([t])).mean()) for t in (0, 199, 200, 599, 600, 999)}
    assert values == {0: 1.0, 199: 1.0, 200: 3.0, 599: 3.0, 600: 1.0, 999: 1.0}
    assert calls == [200, 599]
