"""What elastic training needs of torch and nothing of Lightning: samplers, state transfer, process groups."""
