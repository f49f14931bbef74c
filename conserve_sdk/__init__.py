"""The ConServe client SDK: tag every agent call with its conversation."""
