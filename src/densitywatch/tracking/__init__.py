"""MLflow's store and its runs. Start with runs.py."""
