/** Prints its arguments: what setup.test.ts lets ensure.sh start. */
console.log(JSON.stringify(process.argv.slice(2)));
