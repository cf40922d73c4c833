"""When and where the stages of dvc.yaml run: Prefect flows over DVC's graph, and the servers behind them.

Only this folder imports prefect or dvc. Start with retrain.py: `python -m pipelines` runs its flow.

flows    retrain, detect_outliers, batch_words
drift    drift_note (the alarm that stands), drift_loop (asks for a retraining), automations, drift_retraining
stages   stage_tasks (a Prefect task for each stage), device_slots, dvc_graph, dvc_commands, dvc_files
a run    up_to_date (is there anything to do?), run_lock, stoppable_runs, run_processes, run_times
a commit commit_run (a run of one commit, in a clone), commit_pages, git_files, retrain_result
CI       ask_retrain, propose_retrain, compare, fresh, pull
servers  services (`make up`), server, service_processes, deployments, retrain_schedule, prefect_home, prefect_text
"""
