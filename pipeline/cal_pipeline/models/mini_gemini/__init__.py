"""mini_gemini."""
