"""The codecs: torch only; nothing here knows the data plane or the cluster."""
