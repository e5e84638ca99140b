"""The forward process against the official code's golden values, and its algebra."""
import pytest
import torch
from safetensors.torch import load_file

from vdd_model.config import DiffusionConfig
from vdd_model.diffusion.schedule import Schedule, make_schedule, precondition, q_sample, v_target, x0_from_v


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    return make_schedule(DiffusionConfig())


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
def test_q_sample_and_v_target_golden(schedule, traces, dtype):
    x0, t, noise = traces["q_x0"].to(dtype), traces["q_t"], traces["q_noise"].to(dtype)
    for ours, name in [(q_sample(schedule, x0, t, noise), "q_xt"), (v_target(schedule, x0, t, noise), "v_target")]:
        assert (ours - traces[f"{name}_f64"]).abs().max() < 1e-6
    loss = v_target(schedule, x0, t, noise).square().flatten(1).mean(1)
    assert (loss - traces["loss_of_zero_model_f64"]).abs().max() < 1e-6


def toy_v(x, t, cond):
    """The v-model behind the golden posterior values."""
    return torch.tanh(0.3 * x) + 0.1 * (t.to(x).view(-1, 1, 1, 1, 1) / 1000) * cond


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_x0_golden(schedule, traces, dtype):
    x, cond, t = traces["q_x0"].to(dtype), traces["q_noise"].to(dtype), traces["pmv_t"]
    assert (x0_from_v(schedule, x, t, toy_v(x, t, cond)) - traces["pmv_x0_f64"]).abs().max() < 1e-6
    last, v = torch.tensor([999]), toy_v(x[:1], torch.tensor([999]), cond[:1])
    x0 = x0_from_v(schedule, x[:1], last, v)
    assert (x0 - traces["t999_x0"]).abs().max() < 1e-6
    torch.testing.assert_close(x0, -v)


def estimate(shape: tuple[int, ...] = (3, 4, 2, 64, 64)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and log std of a Gaussian estimate whose std differs from point to point, and an x0 drawn from it."""
    mean, log_std = torch.randn(shape), torch.rand(shape) * 5 - 3
    return mean, log_std, mean + log_std.exp() * torch.randn(shape)


def test_about_an_estimate_of_unit_std_is_the_diffusion_of_the_residual(schedule):
    """The noisy residual is the residual's own noisy state, and the two v differ by what `about` says, at every timestep."""
    mean, _, x0 = estimate((3, 4, 2, 3, 3))
    eps, t = torch.randn_like(x0), torch.tensor([0, 400, 999])
    x_t, residual = q_sample(schedule, x0, t, eps), x0 - mean
    found = r_t, v_mean, v_scale = precondition(schedule, x_t, t, mean, torch.zeros_like(mean))
    torch.testing.assert_close(r_t, q_sample(schedule, residual, t, eps))
    torch.testing.assert_close(v_mean + v_scale * v_target(schedule, residual, t, eps), v_target(schedule, x0, t, eps))
    torch.testing.assert_close(precondition(schedule, x_t, t.float() + 0.2, mean, torch.zeros_like(mean)), found)


def test_about_shows_a_network_unit_variance_and_asks_unit_variance_of_it(schedule):
    """Whatever the estimate's std at a point, and at every timestep; and what is asked for is not in what is shown."""
    mean, log_std, x0 = estimate()
    eps, t = torch.randn_like(x0), torch.tensor([0, 400, 999])
    x_t = q_sample(schedule, x0, t, eps)
    r_t, v_mean, v_scale = precondition(schedule, x_t, t, mean, log_std)
    wanted = (v_target(schedule, x0, t, eps) - v_mean) / v_scale
    for certain in (log_std < -2, log_std > 1):
        for shown, asked, points in zip(r_t, wanted, certain):
            assert abs(shown[points].std() - 1) < 0.05 and abs(asked[points].std() - 1) < 0.05
            assert abs((shown * asked)[points].mean()) < 0.05


def test_a_silent_network_about_an_estimate_gives_the_posterior_mean(schedule):
    """Kalman gain of one observation x_t = a x0 + s eps: a std^2 / (a^2 std^2 + s^2). At the last timestep it is the estimate itself."""
    mean, log_std, x0 = estimate((3, 4, 2, 3, 3))
    t = torch.tensor([0, 400, 999])
    x_t = q_sample(schedule, x0, t, torch.randn_like(x0))
    found = x0_from_v(schedule, x_t, t, precondition(schedule, x_t, t, mean, log_std)[1])
    a, s = schedule.at(t, mean)
    variance = (2 * log_std).exp()
    torch.testing.assert_close(found, mean + a * variance / (a**2 * variance + s**2) * (x_t - a * mean), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2], mean[2])
