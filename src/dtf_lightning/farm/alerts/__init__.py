"""Handlers of alerts: how somebody is told, by mail, webhooks, chats, issues, commands, or by another package's handler."""
