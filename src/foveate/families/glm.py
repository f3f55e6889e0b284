"""GLM-4.1V and its relatives: Qwen2.5-VL's grids and positions around a decoder and a vision encoder of their own.

A frame of a video is marked by the placeholder of images, each with its time after it; transformers takes images or
videos in a batch, not both.
"""

from foveate.families.qwen import QwenVL

GLM4V = QwenVL("glm4v", "GLM-4.1V", "zai-org/GLM-4.1V-9B-Thinking")
GLM4V_MOE = QwenVL("glm4v_moe", "GLM-4.5V", "zai-org/GLM-4.5V")
GLM46V = QwenVL("glm46v", "GLM-4.6V", "zai-org/GLM-4.6V-Flash")
GLM_OCR = QwenVL("glm_ocr", "GLM-OCR", "zai-org/GLM-OCR")
