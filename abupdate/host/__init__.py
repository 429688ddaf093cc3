"""The build host's side: keys, building, signing and inspecting bundles. Never imported on a device."""
