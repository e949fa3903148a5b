"""From a trained network to a leaner one: plan, fit, recover, check, export; each stage is kept, and goes on."""
