// Package clients calls the legacy HTTP API with the Go client that its users
// have. The tests need an environment, which these variables name, and are
// skipped without one:
//
//   - BATCHTASK_API_URL, BATCHTASK_SECRET_ID, BATCHTASK_SECRET_KEY: the API and
//     credentials, as make dev writes them to .dev/env. The account has no waiting
//     tasks and may have five. The front allows 1,000 calls a second
//     (--rate-limit).
//   - BATCHTASK_PRODUCT_ID: a product whose devices listen to the topic "event" and
//     report nothing; one is named door-1, and names of some, but not of all, begin
//     with "door". ABCDE12345.
//   - BATCHTASK_CONFLICT_PRODUCT_ID: a product of the account whose ID belongs to
//     another. One test is skipped without it.
//   - BATCHTASK_SLOW_URL: the same API with a rate of 1/s, at once 2. One test is
//     skipped without it.
//
// It is a module of its own so that the client is no dependency of the operator.
package clients
