"""What training minimizes. An objective is a frozen config with two methods; the training loop knows none."""
