"""The `sendwhy` command."""
