"""Texts from the outside world in which a secret stands: each with `{}` in its place, and what must survive.

They were written after the rules, from the manuals of the tools, libraries and formats that write them.
"""

from __future__ import annotations

SECRET = "kX9vQ2" + "mLw7"
TOKEN = "9f8c2b7a41d64e0f" + "a3b5c6d7e8f90a1b"

COMMANDS = [
    "curl -u admin:{} https://x.example/a ## https://x.example/a|admin",
    "curl --user 'admin:{}' https://x ##https://x",
    "mysql -u root -p{} db ##-u root| db",
    "mysql -uroot -p'{}' ##mysql -uroot",
    "sshpass -p {} ssh a@b ##ssh a@b",
    "redis-cli -a {} ping ##ping",
    "docker login -u bob -p {} reg.io ##-u bob|reg.io",
    "PGPASSWORD={} psql -h x ##psql -h x",
    "ldapsearch -x -w {} -b dc=x ##-b dc=x",
    "openssl rsa -passin pass:{} -in k ##-in k",
    "smbclient //h/s -U bob%{} -c ls ##-c ls",
    "sqlcmd -S h -U sa -P {} -Q x ##-Q x",
    "['redis-cli', '-a', '{}', 'ping'] ##'ping'",
    "machine api.example.com login bob password {} ##login bob",
    "db1:5432:app:svc:{}##db1:5432:app:svc",
    "java -Dapi.key={} -jar x.jar ##-jar x.jar",
    "AUTH {}##AUTH",
    "AUTH default {}##AUTH default",
    "CONFIG SET requirepass {}##CONFIG SET",
]
STATEMENTS = [
    "SET PASSWORD FOR 'bob'@'%' = '{}' ##'bob'",
    "create user bob identified by '{}' ##create user bob",
    "CREATE USER bob IDENTIFIED BY {} ##CREATE USER bob",
    "INSERT INTO users (email, password, n) VALUES ('x', '{}', 3) ##'x'|, 3)",
    "INSERT INTO users (name, token) VALUES ('it''s', 'a{}'), ('b', '{}') ##'it''s'|'b'",
    "SELECT crypt('{}', gen_salt('bf')) ##gen_salt",
    "SELECT pgp_sym_encrypt('{}', 'k') ##SELECT",
    'invalid input syntax for type integer: "{}" ##invalid input syntax for type integer',
    'invalid input value for enum mood: "{}" ##enum mood',
    'date/time field value out of range: "{}" ##out of range',
    "unnamed portal with parameters: $1 = '{}', $2 = '3' ##unnamed portal",
    "CONTEXT:  unnamed portal parameter $1 = '{}' ##CONTEXT",
    "DETAIL:  parameters: $1 = '{}' ##DETAIL",
    "invalid input for query argument $1: '{}' (expected int) ##invalid input for query argument",
    "Duplicate entry '{}' for key 'users.email' ##for key 'users.email'",
    "The duplicate key value is ({}). ##The duplicate key value",
    "(0.001) SELECT 1 WHERE a = %s; args=('{}',) ##SELECT 1 WHERE a = %s",
    "[generated in 0.00012s] ('{}', 1) ##generated in",
    "[cached since 1.2s ago] {'a': '{}'} ##cached since",
    "[raw sql] ('{}',) ##raw sql",
]
MARKUP = [
    '{"name":"api_token","type":"s","value":"{}"} ##"type":"s"',
    '{"value":"{}","type":"s","name":"api_token"} ##"type":"s"',
    '<property name="password" value="{}"/> ##<property name="password"',
    '<add key="ApiKey" value="{}"/> ##<add key="ApiKey"',
    '<entry key="password">{}</entry> ##</entry>',
    '<string name="api_key">{}</string> ##</string>',
    '<input type="password" name="q" value="{}"> ##<input',
    "<key>password</key><string>{}</string> ##</string>",
    "&lt;password&gt;{}&lt;/password&gt; ##&lt;/password&gt;",
    'sasl.jaas.config=x required username="u" password="{}"; ##username="u"',
    '#<User password: "{}", n: 1> ##n: 1',
    "map[password:{} user:x] ##user:x",
    "jdbc:oracle:thin:u/{}@h:1521:x ##@h:1521:x",
]
SENTENCES = [
    "API key: {} ##API key",
    "api key is {}, sorry ##sorry",
    "Access Token : {} ##Access Token",
    "client secret -> {} ##client secret",
    "Password is: {} ##Password is",
    "password was set to {} now ##now",
    "your new password is {}. ##your new password is",
    "password - {} ##password",
    "password\t{} ##password",
    "credentials bob:{} refused ##refused",
    "Sec-WebSocket-Protocol: bearer, {} ##bearer",
    "security_answer={} ##security_answer",
    "mothers_maiden_name={} ##mothers_maiden_name",
]
CODES = [
    "pin is 482913 ##pin is",
    "Your code is 482913 ##Your code is",
    "Your verification code is 482913. ##Your verification code is",
    "Your OTP is 482 913 ##Your OTP is",
    "one-time code 482913 sent ##sent",
    "2FA code: 482913 ##2FA code",
    "mnemonic=abandon 482913 ability able about above absent ##mnemonic",
    "seed phrase: abandon 482913 ability able ##seed phrase",
]
WITH_TOKENS = [
    "session id {} expired ##expired",
    "private key: {} ##private key",
    "https://x/cb#access_token={}&type=b ##type=b",
    "GET /login;jsessionid={} HTTP/1.1 ##HTTP/1.1",
    "connect.sid=s%3A{} ##connect.sid",
    "SharedAccessSignature sr=x&sig={}&se=1 ##se=1",
]
HARMLESS = [
    "error code: 40412 in module 7",
    "exit code is 13713",
    "status code 20001 returned",
    "order number 48291377 is ready",
    "primary key: id, foreign key: user_id",
    "gpio pin 12 is high",
    "build id 5481 of branch main",
    "git commit -p file.txt and docker run -p 8080:80 nginx",
    "mysql -P 3306 -h db -e 'select 1'",
    "curl -u https://x.example/a",
    "AUTH failed for user bob",
    "key frames per second: 60",
    "the code is clean and the tests pass",
    "[generated in 0.00012s] ()",
    "UPDATE t SET a = %s; args=()",
    "INSERT INTO t (a, token) VALUES (%s, %s)",
    "value out of range for type integer",
    '<add key="timeout" value="30"/><input name="page" value="3">',
    '{"name": "region", "type": "s", "value": "eu-west-1"}',
    "http POST returned 201 -a ok",
    "host:8080:a:b",
]
