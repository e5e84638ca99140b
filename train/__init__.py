"""Training: data, synthetic blur, losses, stages, the loop and the evaluation (`python -m train CONFIG`)."""
