.PHONY: check
check:
	@echo placeholder
