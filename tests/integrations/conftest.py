"""What the integrations' tests share with the SDK's."""

from __future__ import annotations

from tests.sdk import conftest as sdk

spans = sdk.spans
