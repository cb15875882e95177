"""Run AI-agent work once: a multi-tenant stream processor. The public names are added as they land."""
