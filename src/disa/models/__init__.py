"""The models. Each only poses denoising problems and takes in their solutions."""
