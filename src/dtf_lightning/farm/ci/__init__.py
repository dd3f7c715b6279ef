"""Continuous integration: pipelines that run commands over a farm, and reports of what came out, for GitHub, GitLab and Buildkite."""
