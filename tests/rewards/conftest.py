from hypothesis import settings

# The same examples in every run, no example database in the checkout, and no limit that a busy machine would trip.
settings.register_profile("rewards", derandomize=True, database=None, deadline=None)
settings.load_profile("rewards")
