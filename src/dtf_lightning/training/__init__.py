"""What training needs of elasticity, with torch and without Lightning."""
