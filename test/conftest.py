"""Of all tests: what Hypothesis tries may take as long as it takes. By default an example of more than 0.2 s fails, on a busy machine any."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "any speed", settings.default, deadline=None, suppress_health_check=[*settings.default.suppress_health_check, HealthCheck.too_slow]
)
settings.load_profile("any speed")
