"""Models of brain recordings: spikes, EEG, images of the brain. Estimators are used as in scikit-learn."""
