"""What engines with the plugin are told of conversations, and what they tell of KV."""
