"""The layers that the perception models share: backbones, attention, decoder layers, matching, losses."""
