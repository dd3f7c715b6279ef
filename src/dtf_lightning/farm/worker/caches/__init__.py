"""What a farm worker keeps between attempts: inputs by digest, environments by lock, models and data of tasks' libraries."""
