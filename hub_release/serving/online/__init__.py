"""Online inference: a server for live requests."""
