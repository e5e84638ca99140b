"""Video deblurring for ComfyUI: the door of the node pack. The model package is `vdd_model`, the nodes are in `nodes`."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI (0.3.48 or newer) once, at start. Imports happen here, so that importing the folder costs nothing."""
    import logging
    try:
        from .nodes import DeblurExtension
    except Exception as error:
        logging.error("Video deblurring: the nodes are not available on this ComfyUI (%s: %s); "
                      "ComfyUI 0.4.0 or newer is recommended, the rest of ComfyUI is not affected", type(error).__name__, error)
        raise
    return DeblurExtension()
