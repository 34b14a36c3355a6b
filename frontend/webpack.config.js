// Reproducible output: CI rebuilds it and compares.
module.exports = { optimization: { moduleIds: 'named', chunkIds: 'named' } };
