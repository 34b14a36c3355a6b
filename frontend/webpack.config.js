// The same output wherever it is built: CI builds it anew and compares.
module.exports = { optimization: { moduleIds: 'named', chunkIds: 'named' } };
