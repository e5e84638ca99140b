"""The forward process, DDIM and guidance against the official code's golden values, and their algebra."""
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from vdd_model.config import DiffusionConfig
from vdd_model.diffusion.sampler import ddim, guided
from vdd_model.diffusion.sampler import timesteps as spaced
from vdd_model.diffusion.schedule import Schedule, make_schedule, precondition, q_sample, v_target, x0_from_v
from vdd_model.errors import UserError

SCHEDULE = make_schedule(DiffusionConfig())


@pytest.fixture(scope="module")
def traces(shared):
    return load_file(shared / "golden/diffusion_traces.safetensors")


@pytest.mark.parametrize("name, zero_terminal_snr", [("linear_sd", False), ("linear_sd_zsnr", True)])
def test_schedule_equals_the_official_one(shared, name, zero_terminal_snr):
    golden = load_file(shared / "golden/diffusion_schedules.safetensors")
    schedule = make_schedule(DiffusionConfig(zero_terminal_snr=zero_terminal_snr))
    a, s = schedule.at(torch.arange(schedule.num_timesteps), schedule.alpha_bar)
    for ours, theirs in [(schedule.alpha_bar, "alphas_cumprod"), (a, "sqrt_alphas_cumprod"), (s, "sqrt_one_minus_alphas_cumprod")]:
        torch.testing.assert_close(ours, golden[f"{name}.{theirs}"], rtol=1e-9, atol=1e-12)
    assert (schedule.alpha_bar[-1] == 0) == zero_terminal_snr                   # exactly


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_q_sample_and_v_target_golden(traces, dtype):
    x0, t, noise = traces["q_x0"].to(dtype), traces["q_t"], traces["q_noise"].to(dtype)
    v = v_target(SCHEDULE, x0, t, noise)
    for ours, name in ((q_sample(SCHEDULE, x0, t, noise), "q_xt"), (v, "v_target"), (v.square().flatten(1).mean(1), "loss_of_zero_model")):
        assert (ours - traces[f"{name}_f64"]).abs().max() < 1e-6


def toy_model(cond):
    """The golden values' v-model."""
    return lambda x, t: torch.tanh(0.3 * x) + 0.1 * (t.to(x).view(-1, 1, 1, 1, 1) / 1000) * cond.to(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_x0_golden(traces, dtype):
    x, cond, t = traces["q_x0"].to(dtype), traces["q_noise"].to(dtype), traces["pmv_t"]
    assert (x0_from_v(SCHEDULE, x, t, toy_model(cond)(x, t)) - traces["pmv_x0_f64"]).abs().max() < 1e-6
    last, v = torch.tensor([999]), toy_model(cond[:1])(x[:1], torch.tensor([999]))
    x0 = x0_from_v(SCHEDULE, x[:1], last, v)
    assert (x0 - traces["t999_x0"]).abs().max() < 1e-6
    torch.testing.assert_close(x0, -v)


def estimate(shape: tuple[int, ...] = (3, 4, 2, 64, 64)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and log std of a Gaussian estimate whose std differs from point to point, and an x0 drawn from it."""
    mean, log_std = torch.randn(shape), torch.rand(shape) * 5 - 3
    return mean, log_std, mean + log_std.exp() * torch.randn(shape)


def test_about_an_estimate_of_unit_std_is_the_diffusion_of_the_residual():
    """The noisy residual is the residual's own noisy state, and the two v differ by what `about` says, at every timestep."""
    mean, _, x0 = estimate((3, 4, 2, 3, 3))
    eps, t = torch.randn_like(x0), torch.tensor([0, 400, 999])
    x_t, residual = q_sample(SCHEDULE, x0, t, eps), x0 - mean
    found = r_t, v_mean, v_scale = precondition(SCHEDULE, x_t, t, mean, torch.zeros_like(mean))
    torch.testing.assert_close(r_t, q_sample(SCHEDULE, residual, t, eps))
    torch.testing.assert_close(v_mean + v_scale * v_target(SCHEDULE, residual, t, eps), v_target(SCHEDULE, x0, t, eps))
    torch.testing.assert_close(precondition(SCHEDULE, x_t, t.float() + 0.2, mean, torch.zeros_like(mean)), found)


def test_about_shows_a_network_unit_variance_and_asks_unit_variance_of_it():
    """Whatever the estimate's std at a point, and at every timestep; and what is asked for is not in what is shown."""
    mean, log_std, x0 = estimate()
    eps, t = torch.randn_like(x0), torch.tensor([0, 400, 999])
    x_t = q_sample(SCHEDULE, x0, t, eps)
    r_t, v_mean, v_scale = precondition(SCHEDULE, x_t, t, mean, log_std)
    wanted = (v_target(SCHEDULE, x0, t, eps) - v_mean) / v_scale
    for certain in (log_std < -2, log_std > 1):
        for shown, asked, points in zip(r_t, wanted, certain):
            assert abs(shown[points].std() - 1) < 0.05 and abs(asked[points].std() - 1) < 0.05
            assert abs((shown * asked)[points].mean()) < 0.05


def test_a_silent_network_about_an_estimate_gives_the_posterior_mean():
    """Kalman gain of one observation x_t = a x0 + s eps: a std^2 / (a^2 std^2 + s^2). At the last timestep it is the estimate itself."""
    mean, log_std, x0 = estimate((3, 4, 2, 3, 3))
    t = torch.tensor([0, 400, 999])
    x_t = q_sample(SCHEDULE, x0, t, torch.randn_like(x0))
    found = x0_from_v(SCHEDULE, x_t, t, precondition(SCHEDULE, x_t, t, mean, log_std)[1])
    a, s = SCHEDULE.at(t, mean)
    variance = (2 * log_std).exp()
    torch.testing.assert_close(found, mean + a * variance / (a**2 * variance + s**2) * (x_t - a * mean), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2], mean[2])


@pytest.fixture(scope="module")
def guided_toy(traces):
    return guided(toy_model(traces["ddim_cond"]), toy_model(traces["ddim_uncond"]), 9.0)


def trace(v_model, x, timesteps, **options):
    """x at every step, the start included, and x0 at every step."""
    seen = []
    ddim(v_model, x, SCHEDULE, timesteps, final_x0=False, callback=lambda i, t, x, x0: seen.append((x, x0)), **options)
    xs, x0s = zip(*seen)
    return torch.stack([x, *xs]), torch.stack(x0s)


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


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
def test_trailing_starts_at_the_end_and_stays_finite_and_one_step_returns_minus_v(steps, eta):
    timesteps, x, v = spaced(steps), torch.randn(1, 4, 2, 3, 3), torch.randn(1, 4, 2, 3, 3)
    assert timesteps[0] == 999 and len(set(timesteps)) == steps and timesteps == sorted(timesteps, reverse=True)
    out = ddim(lambda x, t: 0.1 * x, x, SCHEDULE, timesteps, eta=eta, step_noise=lambda i: torch.randn_like(x))
    assert torch.isfinite(out).all()
    assert torch.equal(ddim(lambda x, t: v, x, SCHEDULE, spaced(1), eta=eta, step_noise=lambda i: torch.randn_like(x)), -v)


@pytest.mark.parametrize("spacing", ["trailing", "vgen"])
def test_impossible_step_counts_and_eta_without_noise_are_refused(spacing):
    for steps in (0, -1, 1001):
        pytest.raises(ValueError, spaced, steps, spacing=spacing).match("steps must be 1 to 1000")
    with pytest.raises(ValueError, match="step_noise"):
        ddim(lambda x, t: x, torch.randn(1, 4, 1, 2, 2), SCHEDULE, spaced(4, spacing=spacing), eta=0.5)


def test_vgen_timesteps_are_distinct_and_start_nearly_in_noise(traces):
    """Too few are refused: the only timestep of one step would be 1, and pure noise would pass for the result."""
    assert spaced(30, spacing="vgen") == traces["ddim30.t"].tolist()                     # 31 of them
    for steps in range(4, 1001):
        timesteps = spaced(steps, spacing="vgen")
        assert len(set(timesteps)) == len(timesteps) and max(timesteps) <= 999 and SCHEDULE.alpha_bar[timesteps[0]].sqrt() < 0.2
    for steps in (1, 2, 3):
        pytest.raises(UserError, spaced, steps, spacing="vgen").match(f"at least 4 steps, not {steps}: .*'trailing'")


def test_guidance_one_never_runs_the_unconditional_branch_and_everywhere_it_never_reads_the_timestep():
    """On a GPU reading it would wait for all that is queued; here it fails."""
    conditional = toy_model(torch.zeros(1))
    assert guided(conditional, None, 1.0) is conditional
    v_model = guided(lambda x, t: torch.ones_like(x), lambda x, t: torch.zeros_like(x), 3.0)
    assert v_model(torch.zeros(1, 2), torch.tensor([5], device="meta")).tolist() == [[3.0, 3.0]]


def test_guidance_interval():
    unconditional = Mock(side_effect=lambda x, t: torch.zeros_like(x))
    v_model = guided(lambda x, t: torch.ones_like(x), unconditional, 3.0, interval=(0.2, 0.6))
    values = [float(v_model(torch.randn(1, 4, 1, 2, 2), torch.tensor([t])).mean()) for t in (0, 199, 200, 599, 600, 999)]
    assert values == [1, 1, 3, 3, 1, 1] and unconditional.call_count == 2
