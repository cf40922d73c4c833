"""When and where the stages of dvc.yaml run: Prefect flows over DVC's graph, and the servers behind them.

Only this folder imports prefect or dvc. Start with retrain.py: `python -m pipelines` runs its flow.
"""
