"""Models of brain recordings: spikes, EEG, images of the brain. Estimators are used as in scikit-learn.

- `spikes`, `scores`, `decoding`: likelihoods, noise ceilings, geometry, controls; `estimator`: what makes an estimator
- `ridge`, `routing_encoder`: from features of images to voxels
- `hmm_glm`, `langevin_flow`, `coordinated_dropout`: populations of neurons
- `covariances`, `eeg_views`, `eeg_nets`, `mvcnet`: trials of EEG
"""
