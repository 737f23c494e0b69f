"""What training draws for each sample: geometry, colour, blur, normalisation."""
