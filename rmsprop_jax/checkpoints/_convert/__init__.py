"""Parameters and groups into ``(tx, opt_state)``, and back, for all formats."""
